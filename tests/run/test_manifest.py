"""The manifest: a run that does not add up cannot be committed; readers go only through it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from deepshadows import storage
from deepshadows.outcomes import InputError, UsageError
from deepshadows.run import manifest as module
from deepshadows.run.manifest import (
    Manifest,
    ManifestPart,
    QuarantinedUnit,
    ScoreObject,
    manifest_url,
    quarantined_units,
    read_manifest,
    score_objects,
    write_quarantine_parts,
    write_score_parts,
)

SCORES = ManifestPart(url="manifest/d-scores-00000.parquet", sha256="s", size_bytes=1, entries=1, rows=20)
BAD = ManifestPart(url="manifest/d-quarantined-00000.parquet", sha256="s", size_bytes=1, entries=1, rows=10)
GOOD: dict[str, Any] = {
    "run": "r", "fingerprint": "f", "driver": "d", "settings": {}, "checkpoint": {}, "preprocessing": {}, "engine": "e",
    "versions": {}, "id_type": "int64", "units_planned": 2, "units_done": 1, "units_quarantined": 1, "rows_planned": 30,
    "rows_scored": 15, "rows_unscored": 5, "rows_quarantined": 10, "flag_counts": {}, "seconds": 1.0,
    "score_parts": (SCORES,), "quarantine_parts": (BAD,),
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


@pytest.mark.parametrize("name", ["score_parts", "quarantine_parts"])
@pytest.mark.parametrize("wrong", [{"rows": 21}, {"entries": 2}])
def test_parts_that_do_not_add_up_are_refused(name: str, wrong: dict[str, int]) -> None:
    (part,) = GOOD[name]
    with pytest.raises(ValidationError):
        Manifest(**{**GOOD, name: (part.model_copy(update=wrong),)})


def test_score_objects_and_reasons_come_back_in_blocks(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENTRIES_PER_PART", 3)
    scores = [ScoreObject(f"scores/aa/{number}.parquet", number, f'"{number}"', 2) for number in range(7)]
    bad = [QuarantinedUnit("u", "s3://b/ä.fits", 1, "truncated")]
    parts = {
        "score_parts": write_score_parts(place, "d", scores),
        "quarantine_parts": write_quarantine_parts(place, "d", bad),
    }
    assert [part.rows for part in parts["score_parts"]] == [6, 6, 2]
    rows = {"rows_planned": 15, "rows_scored": 14, "rows_unscored": 0, "rows_quarantined": 1}
    manifest = Manifest(**{**GOOD, **rows, **parts, "units_planned": 8, "units_done": 7})
    assert [len(block) for block in score_objects(place, manifest)] == [3, 3, 1]
    assert [score for block in score_objects(place, manifest) for score in block] == scores
    assert list(quarantined_units(place, manifest)) == bad


def test_a_part_that_was_replaced_or_lies_elsewhere_is_refused(place: str) -> None:
    (part,) = write_score_parts(place, "d", [ScoreObject("scores/aa/a.parquet", 1, "e", 20)])
    manifest = Manifest(**{**GOOD, "score_parts": (part,)})
    write_score_parts(place, "d", [ScoreObject("scores/aa/b.parquet", 1, "e", 20)])
    with pytest.raises(InputError, match="not the object that the run committed"):
        next(score_objects(place, manifest))
    elsewhere = Manifest(**{**GOOD, "score_parts": (part.model_copy(update={"url": "manifest/../../x"}),)})
    with pytest.raises(InputError, match="outside the run"):
        next(score_objects(place, elsewhere))


def test_an_unfinished_run_is_refused(place: str) -> None:
    with pytest.raises(UsageError, match="no finished run"):
        read_manifest(place)


def test_a_damaged_manifest_is_refused(place: str) -> None:
    storage.write(manifest_url(place), b'{"run": 3')
    with pytest.raises(InputError, match="not a manifest"):
        read_manifest(place)
