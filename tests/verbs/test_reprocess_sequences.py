"""Any sequence of changes gives what a full rerun gives: units that come, change and go, objects that two have."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from deepshadows.catalog import collection, hats_files, provenance
from deepshadows.catalog.continuation import continue_from
from deepshadows.catalog.partitions import repeated_rows
from deepshadows.outcomes import ExitCode
from deepshadows.run.manifest import read_manifest
from deepshadows.schema import Flag
from deepshadows.verbs import publish
from deepshadows.verbs.version_plan import plan_version
from deepshadows.verbs.version_writing import new_version, write_files, write_version
from tests.catalog.finished_runs import rows, write_run
from tests.verbs.test_reprocess import content, put, scored_one_by_one, updated

pytestmark = [
    pytest.mark.usefixtures("ray_local"),
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning", "ignore:PosixUPath on python"),
]
COLUMNS = ["object_id", "ra", "dec", "logit", "p_lsbg", "flags", "unit"]
Present = dict[int, int]
"""Units that are there, by number, and which of their looks."""


def name_of(number: int, look: int) -> str:
    return f"{(7 * number + 3) % 16:x}{look}" + f"{number:030x}"


def unit(number: int, look: int) -> pa.Table:
    """30 objects, of which the units 2k and 2k + 1 share 10; each unit and look gives scores of its own."""
    pair, second = divmod(number, 2)
    ids = np.arange(30) + 100 * pair + 20 * second
    rng = np.random.default_rng(pair)
    ra, dec = 90.0 * pair + 5 + rng.uniform(0, 1, 60), rng.uniform(-40, 40, 60)
    place = ids - 100 * pair
    flags = np.zeros(30, np.int32)
    flags[(ids + number + look) % 7 == 0] = Flag.NO_IMAGE.bit
    flags[ids % 11 == 0] |= Flag.NO_POSITION.bit
    table = rows(ids.tolist(), np.where(ids % 11, ra[place], np.nan), np.where(ids % 11, dec[place], np.nan), flags)
    p = np.full(30, 0.01 + 0.1 * number + 0.04 * look, np.float32)
    score = pa.array(p, mask=table["p_lsbg"].is_null().to_numpy())
    name = pa.array([name_of(number, look)] * 30)
    table = table.set_column(3, table.schema.field("logit"), score).set_column(4, table.schema.field("p_lsbg"), score)
    return table.set_column(7, table.schema.field("unit"), name)


def expected(present: Present) -> pa.Table:
    """Of each object the scored row, else any; of equals that of the first unit."""
    table = pa.concat_tables([unit(number, look) for number, look in present.items()]).sort_by("unit")
    return table.filter(pa.array(~repeated_rows(table))).select(COLUMNS).sort_by("object_id")


def written(place: str, name: str, new: Present, gone: list[str] | None) -> pa.Table:
    """The next version, of a run of the units in `new` without those in `gone`; a first one where that is None."""
    order = sorted(new, key=lambda number: name_of(number, new[number]))
    names = [name_of(number, new[number]) for number in order]
    run = write_run(f"{place}/{name}", [unit(number, new[number]) for number in order], name=name, units=names)
    manifest = read_manifest(run)
    with new_version(f"{place}/cat") as version:
        base = continue_from(collection.current(f"{place}/cat"), gone) if gone is not None else None
        plan = plan_version(list(publish.sources_of(run, manifest)), pa.int64(), 25, 10.0, base)
        tally = write_version(version, plan, keep_first=True)
        facts = [publish._facts(run, manifest)]
        write_files(version, plan, tally, provenance.properties("x", version.name, facts, {}, {}))
        hats_files.check_version(version)
    collection.swap(version)
    parts = [read(f"{place}/cat", COLUMNS) for read in (collection.read_current, collection.read_unplaced)]
    return pa.concat_tables(parts).sort_by("object_id")


def check_sequence(place: str, sequence: list[Present]) -> None:
    scored_in: dict[str, str] = {}
    before: Present = {}
    for step, present in enumerate(sequence):
        gone = [name_of(*item) for item in before.items() if present.get(item[0]) != item[1]]
        new = {number: look for number, look in present.items() if before.get(number) != look}
        named = [f"{scored_in[name]}/{name}" for name in gone] if step else None
        scored_in.update({name_of(*item): f"run{step}" for item in new.items()})
        assert written(place, f"run{step}", new, named).equals(expected(present)), (step, present)
        before = present


PRESENT = st.dictionaries(st.integers(0, 5), st.integers(0, 1), min_size=1)


def test_a_repeat_that_was_left_out_comes_back_when_the_object_it_repeats_goes(tmp_path: Path) -> None:
    check_sequence(str(tmp_path), [{0: 0, 1: 0, 2: 0}, {0: 0, 2: 0}, {0: 0, 1: 1, 2: 0}, {1: 1, 3: 0}])


@pytest.mark.slow
@given(st.lists(PRESENT, min_size=2, max_size=5))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_sequence_of_units_gives_what_all_of_them_give_at_once(sequence: list[Present]) -> None:
    with tempfile.TemporaryDirectory() as place:
        check_sequence(place, sequence)


class Survey(RuleBasedStateMachine):
    """A folder of shards that changes, networks that follow each other, and a catalogue that `reprocess` keeps."""

    checkpoints: tuple[str, str]

    def __init__(self) -> None:
        super().__init__()
        self.place = tempfile.mkdtemp()
        self.network = 0

    @initialize()
    def begin(self) -> None:
        put(self.place, 0)
        put(self.place, 1)

    @rule(number=st.integers(0, 5), look=st.integers(0, 2), rows=st.sampled_from([1, 17, 40]))
    def add_or_change(self, number: int, look: int, rows: int) -> None:
        put(self.place, number, look=look, rows=rows)

    @rule(number=st.integers(1, 5))
    def remove(self, number: int) -> None:
        (Path(self.place) / "in" / f"{number:03d}.parquet").unlink(missing_ok=True)

    @rule()
    def other_network(self) -> None:
        self.network = 1 - self.network

    @rule()
    def update(self) -> None:
        """The catalogue is that of all shards, scored here one by one; a second call changes nothing."""
        checkpoint = self.checkpoints[self.network]
        summary = updated(self.place, checkpoint)
        assert summary.exit_code == ExitCode.DONE
        assert content(f"{self.place}/cat").equals(scored_one_by_one(self.place, checkpoint))
        assert updated(self.place, checkpoint).figures["changed"] is False

    def teardown(self) -> None:
        shutil.rmtree(self.place)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_survey_that_changes_at_random(checkpoint: str, other_checkpoint: str) -> None:
    Survey.checkpoints = (checkpoint, other_checkpoint)
    chosen = settings(max_examples=6, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Survey, settings=chosen)
