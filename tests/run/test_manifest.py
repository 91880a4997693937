"""The manifest: a run that does not add up cannot be committed; readers go only through it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from deepshadows import storage
from deepshadows.outcomes import InputError, UsageError
from deepshadows.run.manifest import Manifest, manifest_url, read_manifest

GOOD: dict[str, Any] = {
    "run": "r", "fingerprint": "f", "driver": "d", "settings": {}, "checkpoint": {}, "preprocessing": {}, "engine": "e",
    "versions": {}, "id_type": "int64", "units_planned": 2, "units_done": 1, "units_quarantined": 1, "rows_planned": 30,
    "rows_scored": 15, "rows_unscored": 5, "rows_quarantined": 10, "flag_counts": {}, "seconds": 1.0,
    "scores": ({"url": "scores/aa/a.parquet", "size_bytes": 1, "etag": "x", "rows": 20},),
}  # fmt: skip


def test_a_run_that_adds_up_is_read_back(place: str) -> None:
    manifest = Manifest(**GOOD)
    assert storage.create(manifest_url(place), manifest.model_dump_json().encode())
    assert read_manifest(place) == manifest


@pytest.mark.parametrize("name", ["rows_planned", "rows_scored", "rows_unscored", "rows_quarantined", "units_planned"])
def test_a_row_too_many_or_too_few_is_refused(name: str) -> None:
    for change in (-1, 1):
        with pytest.raises(ValidationError):
            Manifest(**{**GOOD, name: GOOD[name] + change})


def test_an_unfinished_run_is_refused(place: str) -> None:
    with pytest.raises(UsageError, match="no finished run"):
        read_manifest(place)


def test_a_damaged_manifest_is_refused(place: str) -> None:
    storage.write(manifest_url(place), b'{"run": 3')
    with pytest.raises(InputError, match="not a manifest"):
        read_manifest(place)
