"""`publish` end to end on small runs, local and on S3: what readers see, what is kept, what is refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import lsdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import ray
from astropy.io.votable import parse
from hats.catalog.dataset.table_properties import TableProperties
from hats.io.validation import is_valid_catalog
from hats.pixel_math.spatial_index import compute_spatial_index
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepshadows import storage
from deepshadows.catalog import collection
from deepshadows.catalog.hats_files import hats_path
from deepshadows.outcomes import ExitCode, Failure, HeldError, InputError, StorageError, Summary, UsageError
from deepshadows.run.manifest import manifest_url, read_manifest, score_objects, write_score_parts
from deepshadows.schema import Flag, score_schema
from deepshadows.settings import Publish
from deepshadows.verbs import publish
from tests.catalog.finished_runs import current_version, mixed_tables, rows, sky, write_run

pytestmark = [
    pytest.mark.usefixtures("ray_local"),
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning", "ignore:PosixUPath on python"),
]


def published(place: str, *tables: pa.Table, **options: Any) -> Summary:
    """Publish one run of these units, one a table, to PLACE/cat."""
    run = write_run(f"{place}/run", tables, name=f"run{time.monotonic_ns()}")
    return publish.run(Publish(run=(run,), catalog=f"{place}/cat", **options))


def by_id(table: pa.Table) -> pa.Table:
    names = score_schema(pa.int64()).names[:7]
    return table.select(names).replace_schema_metadata(None).sort_by("object_id")


def left_behind(place: str) -> list[str]:
    return [storage.relative(entry.url, f"{place}/cat") for entry in storage.list_objects(f"{place}/cat")]


def open_lsdb(url: str) -> Any:
    return lsdb.open_catalog(url, storage_options={"anon": False} if storage.is_s3(url) else None)


def test_every_row_comes_out_as_it_went_in(place: str) -> None:
    tables = mixed_tables()
    summary = published(place, *tables, partition_rows=200)
    placed, unplaced = (read(f"{place}/cat") for read in (collection.read_current, collection.read_unplaced))
    assert (placed.num_rows, unplaced.num_rows) == (2979, 21)
    assert by_id(pa.concat_tables([placed.select(unplaced.column_names), unplaced])).equals(
        by_id(pa.concat_tables(tables))
    )
    figures = summary.figures
    assert summary.exit_code == ExitCode.DONE
    assert [figures[f"rows_{name}"] for name in ("planned", "in", "published", "unplaced", "left_out")] == [
        *(3000, 3000, 2979, 21, 0)
    ]
    assert figures["partitions"] == len(collection.partitions_of(figures["table"])) > 12
    assert any("21 rows have no place on the sky" in line for line in summary.text)
    assert is_valid_catalog(hats_path(f"{place}/cat"), strict=True)
    assert not [name for name in left_behind(place) if "staging" in name]


def test_rows_lie_in_their_partitions_in_order(place: str) -> None:
    published(place, *mixed_tables(), partition_rows=200)
    table = storage.join(f"{place}/cat", "v0001", "cat")
    for partition in collection.partitions_of(table):
        with storage.open_arrow(f"{table}/{partition.path}") as file:
            found = pq.read_table(file, columns=["_healpix_29", "object_id", "ra", "dec"])
        index = found["_healpix_29"].to_numpy()
        assert set(index >> 2 * (29 - partition.order)) == {partition.pixel}
        assert np.array_equal(index, compute_spatial_index(found["ra"].to_numpy(), found["dec"].to_numpy()))
        assert found.equals(found.sort_by([("_healpix_29", "ascending"), ("object_id", "ascending")]))


def test_lsdb_opens_the_root_and_finds_a_cone(place: str) -> None:
    tables = mixed_tables()
    published(place, *tables, partition_rows=200)
    catalog = open_lsdb(f"{place}/cat")
    everything = catalog.compute()
    assert len(everything) == 2979
    one = tables[0].slice(100, 1).to_pylist()[0]
    near = catalog.cone_search(one["ra"], one["dec"], radius_arcsec=1).compute()
    assert near["object_id"].tolist() == [one["object_id"]]
    assert near["p_lsbg"].tolist() == [one["p_lsbg"]]


def test_duckdb_and_pyarrow_read_the_table(place: str) -> None:
    summary = published(place, *mixed_tables(), partition_rows=200)
    pattern = summary.figures["table"] + "/dataset/Norder=*/Dir=*/Npix=*.parquet"
    connection = duckdb.connect()
    if storage.is_s3(place):  # DuckDB's own client is downloaded at first use; its Python one takes any fsspec
        connection.register_filesystem(hats_path(place).fs)
    count, bright = connection.execute(
        f"SELECT count(*), count(*) FILTER (p_lsbg > 0.9) FROM read_parquet('{pattern}')"
    ).fetchall()[0]
    path = hats_path(f"{summary.figures['table']}/dataset/_metadata")
    table = ds.parquet_dataset(path.path, filesystem=path.fs).to_table(columns=["p_lsbg"])
    assert count == table.num_rows == 2979
    assert bright == pc.sum(pc.greater(table["p_lsbg"], 0.9)).as_py() > 0


def test_columns_carry_units_ucds_and_descriptions(place: str, tmp_path: Path) -> None:
    summary = published(place, *mixed_tables())
    table_url = summary.figures["table"]
    schema = collection.read_current(f"{place}/cat", ["ra", "p_lsbg", "_healpix_29"]).schema
    assert schema.names == ["ra", "p_lsbg", "_healpix_29"]
    assert schema.field("ra").metadata == {
        b"description": b"right ascension, ICRS",
        b"unit": b"deg",
        b"ucd": b"pos.eq.ra;meta.main",
    }
    common = pq.read_schema(storage.open_arrow(f"{table_url}/dataset/_common_metadata"))
    assert all(field.metadata[b"description"] for field in common)
    (tmp_path / "table.vot").write_bytes(common.metadata[b"IVOA.VOTable-Parquet.content"])
    fields = {field.name: field for field in parse(tmp_path / "table.vot").get_first_table().fields}
    assert (str(fields["dec"].unit), fields["dec"].ucd) == ("deg", "pos.eq.dec;meta.main")


def test_the_properties_tell_where_the_catalogue_comes_from(place: str) -> None:
    summary = published(place, *mixed_tables())
    found = TableProperties.read_from_dir(hats_path(summary.figures["table"]))
    extra = found.model_extra or {}
    assert found.total_rows == 2979
    assert found.skymap_order == 8
    assert extra["deepshadows_model"] == "tiny"
    assert extra["deepshadows_model_sha256"] == "ab" * 32
    (run,) = json.loads(extra["deepshadows_runs"])
    assert run["url"] == f"{place}/run"
    assert run["fingerprint"] == extra["deepshadows_input_fingerprints"]
    assert run["rows"] == {"planned": 3000, "scored": 2961, "unscored": 39, "quarantined": 0}
    assert json.loads(extra["deepshadows_classify_settings"])[run["run"]]["input"] == 'a "quoted" \\ path = é: #1'
    assert json.loads(extra["deepshadows_rows"])["rows_unplaced"] == 21
    assert json.loads(extra["deepshadows_software"])["publish"]["hats"]
    assert json.loads(extra["deepshadows_publish_settings"])["duplicates"] == "fail"


def test_two_runs_make_one_catalogue(place: str) -> None:
    runs = [write_run(f"{place}/{name}", mixed_tables(seed), name=name) for seed, name in ((1, "one"), (2, "two"))]
    summary = publish.run(Publish(run=tuple(runs), catalog=f"{place}/cat"))
    assert summary.figures["rows_in"] == 6000
    names = collection.read_current(f"{place}/cat", ["run"])["run"]
    assert {entry["values"]: entry["counts"] for entry in pc.value_counts(names).to_pylist()} == {
        "one": 2979,
        "two": 2979,
    }


def test_string_identifiers(place: str) -> None:
    ra, dec = sky(50)
    ids = [f"DES J{number:04d} é" for number in range(50)]
    published(place, rows(ids, ra, dec))
    assert sorted(collection.read_current(f"{place}/cat")["object_id"].to_pylist()) == ids
    assert len(open_lsdb(f"{place}/cat").compute()) == 50


def test_one_object_in_two_units_stops_the_publish(place: str) -> None:
    ra, dec = sky(100)
    tables = [rows(list(range(100)), ra, dec), rows([*range(90, 100), 555], [*ra[90:], 10.0], [*dec[90:], 20.0])]
    with pytest.raises(Failure, match=r"10 rows repeat the object_id of another unit, for example .*unit 0+1") as info:
        published(place, *tables)
    assert "--duplicates first" in str(info.value)
    assert left_behind(place) == ["v0001/claim.json"]


def test_first_keeps_one_row_of_each_object_and_says_so(place: str) -> None:
    ra, dec = sky(100)
    flags = np.zeros(100, np.int32)
    flags[95] = Flag.NO_IMAGE.bit
    tables = [rows(list(range(100)), ra, dec, flags), rows(list(range(90, 100)), ra[90:], dec[90:])]
    summary = published(place, *tables, duplicates="first")
    assert summary.figures["rows_left_out"] == 10
    assert "10 rows repeat an object of another unit and were left out" in summary.text
    table = collection.read_current(f"{place}/cat").sort_by("object_id")
    assert table["object_id"].to_pylist() == list(range(100))
    units = table["unit"].to_pylist()
    assert units[95] == "0" * 15 + "1"  # the scored one
    assert {units[number] for number in range(100) if number != 95} == {"0" * 16}


def test_rows_flagged_as_duplicates_are_published(place: str) -> None:
    summary = published(place, rows([1, 1, 2], [1.0, 1.0, 2.0], [0.0] * 3, [0, Flag.DUPLICATE_ID.bit, 0]))
    assert summary.figures["rows_published"] == 3


def test_rows_without_any_place_make_an_empty_sky_and_are_kept(place: str) -> None:
    nowhere = [np.nan] * 5
    summary = published(place, rows([1, 2, 3, 4, 5], nowhere, nowhere, [Flag.NO_POSITION.bit] * 5))
    assert (summary.figures["rows_published"], summary.figures["rows_unplaced"]) == (0, 5)
    assert collection.read_current(f"{place}/cat").num_rows == 0
    assert collection.read_unplaced(f"{place}/cat")["object_id"].to_pylist() == [1, 2, 3, 4, 5]
    assert len(open_lsdb(f"{place}/cat").compute()) == 0


def test_units_without_rows_are_no_hindrance(place: str) -> None:
    ra, dec = sky(10)
    assert published(place, rows([], [], []), rows(list(range(10)), ra, dec)).figures["rows_published"] == 10


@pytest.mark.parametrize("tables", [[], [rows([], [], [])]])
def test_a_run_without_rows_changes_nothing(place: str, tables: list[pa.Table]) -> None:
    with pytest.raises(InputError, match="nothing to publish"):
        published(place, *tables)
    assert left_behind(place) == []


def test_an_unfinished_run_is_refused(place: str) -> None:
    write_run(f"{place}/run", mixed_tables())
    storage.delete(f"{place}/run/manifest.json")
    with pytest.raises(UsageError, match="deepshadows classify"):
        publish.run(Publish(run=(f"{place}/run",), catalog=f"{place}/cat"))
    assert left_behind(place) == []


@pytest.mark.parametrize(
    ("data", "message"), [(b"PAR1 but not really", "bytes, the manifest says"), (None, "not found")]
)
def test_a_changed_score_object_is_refused(place: str, data: bytes | None, message: str) -> None:
    run = write_run(f"{place}/run", mixed_tables())
    url = storage.list_objects(f"{run}/scores")[1].url
    storage.delete(url) if data is None else storage.write(url, data)
    with pytest.raises(Failure, match=message):
        publish.run(Publish(run=(run,), catalog=f"{place}/cat"))
    assert left_behind(place) == ["v0001/claim.json"]


def test_a_damaged_score_object_of_the_right_size_is_refused(place: str) -> None:
    run = write_run(f"{place}/run", mixed_tables())
    url = storage.list_objects(f"{run}/scores")[1].url
    storage.write(url, storage.read(url)[:-1] + b"\0")
    with pytest.raises(InputError, match="it cannot be read"):
        publish.run(Publish(run=(run,), catalog=f"{place}/cat"))


def test_a_score_object_that_the_manifest_does_not_name_is_not_read(place: str) -> None:
    """Of the same run and whole: all that tells it apart is the manifest."""
    run = f"{place}/run"
    write_run(run, [*mixed_tables(1), mixed_tables(2)[0]])
    write_run(run, mixed_tables(1))
    assert len(storage.list_objects(f"{run}/scores")) == 4
    summary = publish.run(Publish(run=(run,), catalog=f"{place}/cat"))
    assert summary.figures["rows_in"] == 3000
    ids = pc.min_max(collection.read_current(f"{place}/cat")["object_id"]).as_py()
    assert ids == {"min": 100_000, "max": 102_999}


def test_a_manifest_cannot_name_objects_outside_its_run(place: str) -> None:
    run = write_run(f"{place}/run", mixed_tables())
    manifest = read_manifest(run)
    astray = [replace(score, url=f"../{score.url}") for part in score_objects(run, manifest) for score in part]
    parts = write_score_parts(run, "astray", astray)
    storage.write(manifest_url(run), manifest.model_copy(update={"score_parts": parts}).model_dump_json().encode())
    with pytest.raises(InputError, match="outside the run"):
        publish.run(Publish(run=(run,), catalog=f"{place}/cat"))


def test_a_new_version_replaces_what_readers_see_and_nothing_else(place: str) -> None:
    first = published(place, *mixed_tables(1))
    before = open_lsdb(f"{place}/cat")
    untouched = {entry.url: entry.etag for entry in storage.list_objects(f"{place}/cat/v0001")}
    second = published(place, *mixed_tables(2))
    assert (first.figures["version"], second.figures["version"]) == ("v0001", "v0002")
    assert min(open_lsdb(f"{place}/cat").compute()["object_id"]) == 200_000
    assert min(before.compute()["object_id"]) == 100_000
    assert {entry.url: entry.etag for entry in storage.list_objects(f"{place}/cat/v0001")} == untouched


def test_racing_publishers_never_mix(place: str) -> None:
    """Two publishers at once, over a catalogue that is there: one may be told that the other was first."""
    published(place, *mixed_tables(1))
    runs = {seed: write_run(f"{place}/run{seed}", mixed_tables(seed), name=f"r{seed}") for seed in (2, 3)}

    def attempt(seed: int) -> int | None:
        try:
            publish.run(Publish(run=(runs[seed],), catalog=f"{place}/cat", partition_rows=1000))
        except HeldError:
            return None
        return seed

    with ThreadPoolExecutor(2) as pool:
        winners = [seed for seed in pool.map(attempt, (2, 3)) if seed]
    assert winners
    table = collection.read_current(f"{place}/cat")
    assert table.num_rows == 2979
    assert set(table["run"].to_pylist()) in [{f"r{seed}"} for seed in winners]
    assert is_valid_catalog(hats_path(f"{place}/cat"), strict=True)


KILLED = """
import sys
from deepshadows.settings import Publish
from deepshadows.verbs import publish
publish.hats_files.check_table = lambda url: (print("written", flush=True), sys.stdin.read())
publish.run(Publish(run=(sys.argv[1],), catalog=sys.argv[2], address=sys.argv[3]))
"""


def test_a_killed_publish_leaves_the_old_version(place: str) -> None:
    """SIGKILL with everything written but the pointer; the next publish takes another number."""
    published(place, *mixed_tables(1))
    run = write_run(f"{place}/run2", mixed_tables(2), name="two")
    victim = subprocess.Popen(
        [sys.executable, "-c", KILLED, run, f"{place}/cat", ray.get_runtime_context().gcs_address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert victim.stdout is not None
    assert victim.stdout.readline() == "written\n"
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert storage.exists(f"{place}/cat/v0002/cat/hats.properties")
    assert current_version(f"{place}/cat") == "v0001"
    assert min(open_lsdb(f"{place}/cat").compute()["object_id"]) == 100_000
    assert publish.run(Publish(run=(run,), catalog=f"{place}/cat")).figures["version"] == "v0003"


def test_a_pointer_whose_answer_was_lost_may_name_the_version_and_keeps_it_whole(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(place, *mixed_tables(1))
    run = write_run(f"{place}/run2", mixed_tables(2), name="two")
    put = storage.replace

    def lost(url: str, data: bytes, etag: str) -> bool:
        done = put(url, data, etag)
        if url.endswith(collection.POINTER):
            raise StorageError("the connection broke")
        return done

    monkeypatch.setattr(storage, "replace", lost)
    with pytest.raises(StorageError, match="the connection broke"):
        publish.run(Publish(run=(run,), catalog=f"{place}/cat", partition_rows=1000))
    assert set(collection.read_current(f"{place}/cat")["run"].to_pylist()) == {"two"}


def test_a_catalogue_root_with_spaces(tmp_path: Path) -> None:
    published(str(tmp_path / "my survey"), *mixed_tables())
    assert len(open_lsdb(str(tmp_path / "my survey" / "cat")).compute()) == 2979


POSITIONS = st.lists(
    st.tuples(
        st.one_of(st.sampled_from([0.0, 360.0, 45.0, -1.0, float("nan")]), st.floats(0, 360)),
        st.one_of(st.sampled_from([-90.0, 90.0, 0.0, 91.0, float("nan")]), st.floats(-90, 90)),
    ),
    min_size=1,
    max_size=40,
)


@given(POSITIONS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_positions_come_out_whole(tmp_path: Path, positions: list[tuple[float, float]]) -> None:
    """Poles, both ends of right ascension, impossible values: rows in = rows out, each kept as it was."""
    place = str(tmp_path / str(time.monotonic_ns()))
    ra, dec = (list(values) for values in zip(*positions, strict=True))
    table = rows(list(range(len(ra))), ra, dec)
    published(place, table, partition_rows=40)
    parts = [
        read(f"{place}/cat").select(table.column_names[:7])
        for read in (collection.read_current, collection.read_unplaced)
    ]
    assert by_id(pa.concat_tables(parts)).equals(by_id(table))
    good = [0 <= a <= 360 and -90 <= d <= 90 for a, d in positions]
    assert parts[0].num_rows == sum(good)
