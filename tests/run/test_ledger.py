"""The books of a run: whatever was committed, journalled, lost or repeated, each planned unit counts once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepshadows import storage
from deepshadows.outcomes import Failure, InputError
from deepshadows.run import journal as journal_module
from deepshadows.run.journal import Journal
from deepshadows.run.ledger import Ledger, open_ledger, open_units, planned_ledger
from deepshadows.run.plan import Draft
from deepshadows.run.record import RunRecord
from deepshadows.run.scores import Receipt, commit, score_url
from deepshadows.run.units import Unit, make_unit
from deepshadows.schema import Flag
from tests.catalog.finished_runs import rows
from tests.run.test_plan import record_of


def commit_one(run: str, unit: Unit, bad: int, fingerprint: str = "f") -> Receipt:
    """Score a unit of which `bad` rows have no image."""
    flags = [Flag.NO_IMAGE.bit] * bad + [0] * (unit.rows - bad)
    table = rows(list(range(unit.rows)), [1.0] * unit.rows, [2.0] * unit.rows, flags, unit=unit.unit)
    return commit(run, unit, table, fingerprint, f"engine {bad % 2}")


def written_plan(run: str, count: int) -> tuple[RunRecord, list[Unit]]:
    units = [make_unit(kind="shard", url=f"/{n}", etag="e", size_bytes=1, rows=n % 4 + 1) for n in range(count)]
    draft = Draft(units)
    draft.write(run, "r")
    return record_of(draft), units


@settings(max_examples=25, deadline=None)
@given(
    fates=st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans(), st.integers(0, 1)), min_size=1, max_size=30),
    per_part=st.integers(1, 5),
)
def test_a_driver_that_goes_on_knows_what_was_done_and_leaves_the_rest(
    tmp_path_factory: pytest.TempPathFactory, fates: list[tuple[bool, bool, bool, int]], per_part: int
) -> None:
    """A unit may be committed, its receipt journalled, its object deleted after that."""
    run = str(tmp_path_factory.mktemp("run"))
    record, units = written_plan(run, len(fates))
    done, scored, flags = set(), 0, 0
    with pytest.MonkeyPatch.context() as patch, Journal(run, "f", "d") as journal:
        patch.setattr(journal_module, "RECEIPTS_PER_PART", per_part)
        for unit, (committed, journalled, deleted, bad) in zip(units, fates, strict=True):
            if not committed:
                continue
            receipt = commit_one(run, unit, bad)
            if journalled:
                journal.add(receipt)
            if deleted:
                storage.delete(score_url(run, unit.unit))
                continue
            done.add(unit.unit)
            scored, flags = scored + unit.rows - bad, flags + bad
    ledger = open_ledger(run, record)
    assert ledger.rows_scored == scored
    assert ledger.flag_counts["NO_IMAGE"] == flags
    assert ledger.rows_done == sum(unit.rows for unit in units if unit.unit in done)
    left = list(open_units(run, record, ledger))
    assert [Unit(**row) for row in left] == [unit for unit in units if unit.unit not in done]
    assert ledger.units_open == len(left)


def test_a_score_object_that_was_made_again_is_not_taken_for_the_one_in_the_journal(place: str) -> None:
    record, units = written_plan(place, 4)
    with Journal(place, "f", "first") as journal:
        for unit in units:
            journal.add(commit_one(place, unit, 0))
    storage.delete(score_url(place, units[3].unit))
    commit_one(place, units[3], 2)
    ledger = open_ledger(place, record)
    assert (ledger.rows_scored, ledger.rows_done, ledger.flag_counts["NO_IMAGE"]) == (8, 10, 2)
    assert ledger.engines == {"engine 0"}


def test_the_journal_spares_the_footers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, units = written_plan(str(tmp_path), 6)
    with Journal(str(tmp_path), "f", "d") as journal:
        receipts = [commit_one(str(tmp_path), unit, 0) for unit in units]
        for receipt in receipts[:5]:
            journal.add(receipt)
    opened = []
    real = storage.open_arrow
    monkeypatch.setattr(storage, "open_arrow", lambda url: opened.append(url) or real(url))
    assert open_ledger(str(tmp_path), record).units_open == 0
    assert [url for url in opened if "/scores/" in url] == [score_url(str(tmp_path), units[5].unit)]


def test_scores_and_journals_of_another_run_are_not_taken(tmp_path: Path) -> None:
    record, units = written_plan(str(tmp_path), 2)
    with Journal(str(tmp_path), "another", "d") as journal:
        journal.add(commit_one(str(tmp_path), units[0], 0, "another"))
    with pytest.raises(InputError, match="belongs to another run"):
        open_ledger(str(tmp_path), record)


def test_a_score_object_under_the_name_of_another_unit_is_not_taken(tmp_path: Path) -> None:
    record, units = written_plan(str(tmp_path), 5)
    commit_one(str(tmp_path), units[0], 0)
    storage.write(score_url(str(tmp_path), units[4].unit), storage.read(score_url(str(tmp_path), units[0].unit)))
    with pytest.raises(InputError, match="holds another unit"):
        open_ledger(str(tmp_path), record)


def test_of_two_commits_both_receipts_are_of_the_one_that_is_there(place: str) -> None:
    _, (_, unit) = written_plan(place, 2)
    first = commit_one(place, unit, 1)
    assert commit_one(place, unit, 0) == first
    (entry,) = storage.list_objects(storage.join(place, "scores"))
    assert (first.etag, first.size_bytes) == (entry.etag, entry.size_bytes)


def test_files_that_are_no_score_objects_are_passed_over(tmp_path: Path) -> None:
    record, units = written_plan(str(tmp_path), 2)
    name = units[0].unit
    for path in (f"{name[:2]}/{name}-copy.parquet", f"zz/{name}.parquet", f"{name[:2]}/ü.parquet", f"{name}.parquet"):
        storage.write(f"{tmp_path}/scores/{path}", b"no Parquet")
    assert open_ledger(str(tmp_path), record).units_open == 2


def ledger_of(count: int) -> tuple[Ledger, list[str]]:
    names = sorted(f"{n:032x}" for n in range(count))
    return Ledger(np.array(names, "S32"), np.full(count, 10), np.zeros(count, bool)), names


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 10), st.booleans())))
def test_each_unit_counts_once_whatever_receipts_come(receipts: list[tuple[int, int, bool]]) -> None:
    """The first good receipt of a unit decides, a reason holds until then."""
    ledger, names = ledger_of(5)
    good: dict[int, int] = {}
    bad: set[int] = set()
    for number, scored, quarantined in receipts:
        counts = json.dumps({"SATURATED": scored})
        ledger.note(Receipt(unit=names[number], rows=10, scored=scored, quarantined=quarantined, flag_counts=counts))
        if number not in good and not quarantined:
            good[number] = scored
        (bad.add if quarantined and number not in good else bad.discard)(number)
    assert ledger.rows_scored == sum(good.values()) == Counter(ledger.flag_counts)["SATURATED"]
    assert ledger.rows_done == 10 * len(good)
    assert ledger.rows_quarantined == 10 * len(bad)
    assert ledger.units_open == 5 - len(good) - len(bad)


def test_a_receipt_that_nobody_planned_is_refused() -> None:
    ledger, names = ledger_of(2)
    for receipt in (Receipt(unit="f" * 32, rows=10, scored=1), Receipt(unit=names[0], rows=11, scored=1)):
        with pytest.raises(Failure, match="nobody planned"):
            ledger.note(receipt)


def test_a_plan_of_nothing_has_nothing_to_do(tmp_path: Path) -> None:
    record, _ = written_plan(str(tmp_path), 0)
    assert record.plan_parts == 0
    assert planned_ledger(str(tmp_path), record).units_open == open_ledger(str(tmp_path), record).units_open == 0
