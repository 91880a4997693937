"""A publish that is killed: readers see a whole version at every moment."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from deepshadows import storage
from deepshadows.catalog import collection
from deepshadows.outcomes import ExitCode
from tests.catalog.finished_runs import current_version
from tests.faults.place import LIMIT_S, ROWS, Driver, Place

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]

MOMENTS = [
    ("/claim.json", False, "old"),
    ("/staging/", True, "old"),
    ("/dataset/", False, "old"),
    ("/partition_info.csv", True, "old"),
    ("/hats.properties", True, "old"),
    ("/cat/collection.properties", False, "either"),  # what was under way may still arrive
    ("/cat/collection.properties", True, "new"),
]
"""Writes at which the publisher is killed, before or after the store does them, and what readers see then."""


def test_publish_is_killed_half_way(place: Place, target: str, trial: Callable[[str], None]) -> None:
    """A publish is killed: at its first write, at its last, at five in between."""
    catalog = f"{target}/cat"

    def publish() -> Driver:
        words = ["publish", "--run", f"{place.folder}/undisturbed", "--catalog", catalog]
        return Driver([*words, "--partition-rows", "200", "--address", place.nodes.address], place.nodes.environment)

    def check(before: str, seen: str) -> None:
        table = collection.read_current(catalog)
        assert table.num_rows == ROWS
        assert table.sort_by("object_id").select(place.undisturbed.column_names).equals(place.undisturbed)
        now = current_version(catalog)
        assert (now == before) == (seen == "old") or seen == "either", (before, now)

    assert publish().end()["rows_published"] == ROWS
    for part, answered, seen in MOMENTS:
        before = current_version(catalog)
        driver = publish()
        gate = place.road.at(1, "PUT", part, driver.kill, answered=answered)
        driver.process.wait(LIMIT_S)
        gate.result(5)
        check(before, seen)
        trial("readers saw the new version, whole" if seen == "new" else "readers saw the old version")
    before = current_version(catalog)
    last = publish()
    assert last.end()["exit_code"] == ExitCode.DONE, last.log
    check(before, "new")
    assert storage.list_objects(f"{catalog}/{current_version(catalog)}/staging") == []
