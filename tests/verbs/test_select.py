"""`select` and `versions` end to end: round trips through astropy, DuckDB and pyarrow; what is read and refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import lsdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.io.votable import parse
from astropy.table import Table

from deepshadows import storage
from deepshadows.catalog import collection, selection, versions
from deepshadows.catalog.cones import Cone
from deepshadows.cli import main
from deepshadows.outcomes import InputError, NotFoundError, StorageError, Summary, UsageError
from deepshadows.settings import Publish, Select
from deepshadows.verbs import publish
from deepshadows.verbs import select as select_verb
from tests.catalog.finished_runs import mixed_tables, rows, sky, write_run

pytestmark = [
    pytest.mark.usefixtures("ray_local"),
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning", "ignore:PosixUPath on python"),
]


@pytest.fixture(scope="module")
def catalog(ray_local: None, session_bucket: str) -> str:
    """3000 objects in 48 partitions, on S3."""
    place = f"{session_bucket}/select"
    write_run(f"{place}/run", mixed_tables())
    publish.run(Publish(run=(f"{place}/run",), catalog=f"{place}/cat", partition_rows=200))
    return f"{place}/cat"


@pytest.fixture(scope="module")
def everything(catalog: str) -> pa.Table:
    placed, unplaced = collection.read_current(catalog), collection.read_unplaced(catalog)
    return pa.concat_tables([placed, unplaced], promote_options="default")


def select(catalog: str, output: Path | str, **flags: Any) -> Summary:
    return select_verb.run(Select(catalog=catalog, output=str(output), **flags))


def ids(table: Any) -> list[int]:
    return sorted(int(value) for value in table["object_id"])


def test_parquet_comes_back_as_it_is_in_the_catalogue(catalog: str, everything: pa.Table, tmp_path: Path) -> None:
    summary = select(catalog, tmp_path / "all.parquet")
    found = pq.read_table(tmp_path / "all.parquet")
    assert found.replace_schema_metadata(None).cast(everything.schema).equals(everything)
    assert summary.figures["rows"] == 3000
    assert found.schema.field("ra").metadata[b"unit"] == b"deg"
    assert found.schema.metadata[b"deepshadows.version"] == b"v0001"
    assert b'ucd="pos.eq.ra;meta.main"' in found.schema.metadata[b"IVOA.VOTable-Parquet.content"]
    assert duckdb.sql(f"SELECT count(*) FROM '{tmp_path}/all.parquet' WHERE p_lsbg IS NULL").fetchall() == [(39,)]


def test_fits_has_units_ucds_and_nulls_as_fits_has_them(catalog: str, everything: pa.Table, tmp_path: Path) -> None:
    select(catalog, tmp_path / "some.fits", where="p_lsbg > 0.9 OR p_lsbg IS NULL")
    expected = everything.filter(pc.or_kleene(pc.greater(everything["p_lsbg"], 0.9), pc.is_null(everything["p_lsbg"])))
    found = Table.read(tmp_path / "some.fits")
    assert ids(found) == ids(expected.to_pydict())
    by_id = expected.sort_by("object_id")
    found.sort("object_id")
    for name in ("ra", "p_lsbg", "logit", "_healpix_29"):
        assert np.ma.filled(found[name], 0).tolist() == by_id[name].fill_null(0).to_pylist(), name
    assert str(found["ra"].unit) == "deg"
    header = fits.getheader(tmp_path / "some.fits", 1)
    column = next(number for number in range(1, 11) if header[f"TTYPE{number}"] == "dec")
    assert [header[f"{key}{column}"] for key in ("TUNIT", "TUCD")] == ["deg", "pos.eq.dec;meta.main"]
    assert header[f"TCOMM{column}"] == "declination, ICRS"
    assert "where: p_lsbg > 0.9 OR p_lsbg IS NULL" in str(header["HISTORY"])


def test_a_votable_has_units_ucds_and_the_frame(catalog: str, everything: pa.Table, tmp_path: Path) -> None:
    select(catalog, tmp_path / "cone.vot", cone="45,0,72000", columns="object_id,ra,dec,p_lsbg")
    placed = everything.filter(pc.is_valid(everything["_healpix_29"]))
    coordinates = SkyCoord(placed["ra"].to_numpy(), placed["dec"].to_numpy(), unit="deg")
    near = coordinates.separation(SkyCoord(45, 0, unit="deg")).arcsec <= 72000
    votable = parse(tmp_path / "cone.vot")
    table = votable.get_first_table()
    assert ids(table.to_table()) == ids(placed.filter(pa.array(near)).to_pydict())
    fields = {field.name: field for field in table.fields}
    assert list(fields) == ["object_id", "ra", "dec", "p_lsbg"]
    assert (str(fields["ra"].unit), fields["ra"].ucd, fields["ra"].ref) == ("deg", "pos.eq.ra;meta.main", "icrs")
    assert votable.resources[0].coordinate_systems[0].system == "ICRS"
    assert {info.name: info.value for info in votable.resources[0].infos}["cone"].startswith("72000 arcsec")


def test_it_is_written_to_s3_too(catalog: str, bucket: str) -> None:
    select(catalog, f"{bucket}/out.parquet", where="object_id = 100100")
    with storage.open_arrow(f"{bucket}/out.parquet") as file:
        assert pq.read_table(file)["object_id"].to_pylist() == [100100]


def test_texts_as_identifiers_and_what_fits_cannot_hold(tmp_path: Path) -> None:
    ra, dec = sky(50)
    run = write_run(f"{tmp_path}/run", [rows([f"DES J{number:04d} é" for number in range(50)], ra, dec)])
    publish.run(Publish(run=(run,), catalog=f"{tmp_path}/cat"))
    where = "object_id IN ('DES J0007 é', 'DES J0008 é', 'nowhere')"
    select(f"{tmp_path}/cat", tmp_path / "o.vot", where=where)
    found = Table.read(tmp_path / "o.vot")
    assert sorted(found["object_id"]) == ["DES J0007 é", "DES J0008 é"]
    with pytest.raises(InputError, match=r"FITS holds ASCII only; write \.vot or \.parquet"):
        select(f"{tmp_path}/cat", tmp_path / "o.fits", where=where)
    assert not (tmp_path / "o.fits").exists()


@pytest.mark.parametrize("ending", ["parquet", "fits", "vot"])
def test_what_matches_nothing_is_an_empty_file_with_the_columns(catalog: str, tmp_path: Path, ending: str) -> None:
    summary = select(catalog, tmp_path / f"none.{ending}", where="p_lsbg > 2")
    assert (summary.exit_code, summary.figures["rows"]) == (0, 0)
    assert "no row matches; the file has the columns and no rows" in summary.text
    path = tmp_path / f"none.{ending}"
    found = pq.read_table(path) if ending == "parquet" else Table.read(path)
    assert (len(found), "p_lsbg" in (found.column_names if ending == "parquet" else found.colnames)) == (0, True)


def test_a_cone_outside_the_survey_says_so(tmp_path: Path) -> None:
    run = write_run(f"{tmp_path}/run", [rows([1, 2, 3], [10.0, 10.1, 200.0], [0.0, 0.1, 50.0])])
    publish.run(Publish(run=(run,), catalog=f"{tmp_path}/cat", partition_rows=1))
    summary = select(f"{tmp_path}/cat", tmp_path / "o.parquet", cone="10,-80,5")
    assert "no partition reaches into the cone; the file has the columns and no rows" in summary.text
    assert summary.figures["files_read"] == 0


def test_lsdb_finds_an_id_by_the_index(catalog: str) -> None:
    opened = lsdb.open_catalog(catalog, storage_options={"anon": False})
    found = opened.id_search(values={"object_id": 100100})
    assert found.compute()["object_id"].tolist() == [100100]
    assert len(found.get_healpix_pixels()) == 1


@pytest.mark.slow  # LSDB takes 15 s to begin
def test_a_crossmatch_by_lsdb_finds_pairs_across_the_edges_of_partitions(tmp_path: Path) -> None:
    """Two catalogues of the same objects, 5 arcsec apart: with the margin every object finds its partner."""
    rng = np.random.default_rng(1)
    ra, dec = 10 + rng.uniform(0, 0.1, 600), rng.uniform(0, 0.1, 600)
    for name, shift_deg in (("one", 0.0), ("other", 5 / 3600)):
        run = write_run(f"{tmp_path}/{name}-run", [rows(list(range(600)), ra, dec + shift_deg)], name=name)
        publish.run(Publish(run=(run,), catalog=f"{tmp_path}/{name}", partition_rows=300))
    one = lsdb.open_catalog(f"{tmp_path}/one")

    def pairs(other: str) -> int:
        found = one.crossmatch(lsdb.open_catalog(other), radius_arcsec=5.1, n_neighbors=3).compute()
        return int((found["object_id_one"] == found["object_id_other"]).sum())

    assert pairs(f"{tmp_path}/other") == 600
    assert pairs(f"{tmp_path}/other/v0001/other") < 600  # the table alone, without the margin


@pytest.fixture(scope="module")
def wide(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """On disk, 240,000 objects in 12 partitions, so that files are larger than what reading ahead fetches."""
    place = tmp_path_factory.mktemp("wide")
    tables = []
    for unit in range(4):
        ra, dec = sky(60_000, unit)
        tables.append(rows([unit * 60_000 + number for number in range(60_000)], ra, dec))
    write_run(f"{place}/run", tables)
    publish.run(Publish(run=(f"{place}/run",), catalog=f"{place}/cat", partition_rows=21_000))
    return f"{place}/cat"


def bytes_read() -> int:
    """What this process has asked the kernel to read, ever."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


@pytest.mark.parametrize(
    ("flags", "files", "share"),
    [
        ({"cone": Cone(ra_deg=90, dec_deg=0, radius_arcsec=7200)}, 1, 0.2),
        ({"where": "object_id = 77777"}, 2, 0.3),
        ({"columns": "object_id,p_lsbg"}, 13, 0.4),
        ({"where": "p_lsbg > 0.5", "columns": "object_id"}, 13, 0.4),
    ],
)
def test_a_selection_reads_what_it_needs_alone(wide: str, flags: dict[str, Any], files: int, share: float) -> None:
    """Told by the kernel, of the bytes in the table; and what the selection itself says it read is no less."""
    version = versions.find(wide, None)
    whole = sum(entry.size_bytes for entry in storage.list_objects(version.table_url, (".parquet",)))
    before = bytes_read()
    wanted = selection.select(version, **flags)
    found = sum(len(table) for table in wanted.tables())
    spent = bytes_read() - before
    assert found > 0
    assert 0 < wanted.read.files <= files
    assert wanted.read.size_bytes < spent < share * whole, (wanted.read, whole)


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ({"where": "p_lsb > 1"}, UsageError, "there is no column p_lsb; did you mean p_lsbg"),
        ({"cone": "10,100,1"}, UsageError, "declination 100 is not between -90 and 90"),
        ({"columns": "ra,redshift"}, UsageError, "'redshift' is no column of the catalogue; there are _healpix_29"),
        ({"columns": "ra,ra"}, UsageError, "'ra' is given twice"),
        ({"output": "x.csv"}, UsageError, r"end it in \.parquet, \.fits or \.vot"),
        ({"version": "v0042"}, UsageError, "no version v0042 is published; there are v0001"),
    ],
)
def test_what_is_wrong_is_refused_and_nothing_written(
    catalog: str, tmp_path: Path, flags: dict[str, Any], error: type[Exception], message: str
) -> None:
    flags = {"output": str(tmp_path / "o.parquet"), **flags}
    with pytest.raises(error, match=message):
        select_verb.run(Select(catalog=catalog, **flags))
    assert not list(tmp_path.iterdir())


def test_output_within_the_catalogue_is_refused(catalog: str) -> None:
    with pytest.raises(UsageError, match="lies within the catalogue"):
        select(catalog, f"{catalog}/v0001/o.parquet")


def test_folders_without_a_catalogue_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(NotFoundError, match="no catalogue there"):
        select(str(tmp_path), tmp_path.parent / "o.parquet")
    (tmp_path / "collection.properties").write_text("obs_collection=gaia\nhats_primary_table_url=gaia\n")
    with pytest.raises(InputError, match="DeepShadows did not write"):
        select(str(tmp_path), tmp_path.parent / "o.parquet")


def test_a_reader_of_a_version_that_expires_is_told_and_one_that_is_kept_goes_on(bucket: str) -> None:
    place = bucket
    for seed in (1, 2, 3):
        run = write_run(f"{place}/run{seed}", mixed_tables(seed), name=f"r{seed}")
        publish.run(Publish(run=(run,), catalog=f"{place}/cat", partition_rows=1000))
    first, second = (selection.select(versions.find(f"{place}/cat", name)).tables() for name in ("v0001", "v0002"))
    assert [len(next(tables)) for tables in (first, second)] == [0, 0]
    versions.expire(versions.plan_expiry(f"{place}/cat", 2))
    with pytest.raises(StorageError, match=r"v0001: .* expired while it was being read"):
        list(first)
    assert sum(len(table) for table in second) == 3000


def test_readers_racing_publishes_see_one_whole_version(place: str) -> None:
    """Our own readers and LSDB, from the root, while versions are published, rolled back and made current again."""
    runs = {seed: write_run(f"{place}/run{seed}", mixed_tables(seed), name=f"r{seed}") for seed in (1, 2, 3)}
    catalog, done = f"{place}/cat", threading.Event()
    publish.run(Publish(run=(runs[1],), catalog=catalog, partition_rows=1000))
    options = {"anon": False} if storage.is_s3(place) else None

    def with_lsdb() -> set[tuple[str, int]]:
        found = lsdb.open_catalog(catalog, storage_options=options).compute()
        return {(run, len(found)) for run in set(found["run"])}

    def with_ours() -> set[tuple[str, int]]:
        table = collection.read_current(catalog, ["run"])
        return {(run, len(table)) for run in table["run"].unique().to_pylist()}

    def read(how: Callable[[], set[tuple[str, int]]]) -> list[set[tuple[str, int]]]:
        seen = [how()]
        while not done.is_set():
            seen.append(how())
        return seen

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read, how) for how in (with_ours, with_ours, with_lsdb)]
        try:
            for seed in (2, 3):
                publish.run(Publish(run=(runs[seed],), catalog=catalog, partition_rows=1000))
                versions.rollback(catalog, "v0001")
                versions.rollback(catalog, f"v000{seed}")
        finally:
            done.set()
        seen = [entry for reader in readers for entry in reader.result()]
    assert all(len(entry) == 1 for entry in seen)
    assert {entry.pop() for entry in seen} >= {("r1", 2979), ("r2", 2979)}


def test_the_command_line_selects_and_manages_versions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*words: str) -> tuple[int, dict[str, Any], str]:
        with pytest.raises(SystemExit) as info:
            main([*words, "--json"])
        out, err = capsys.readouterr()
        return int(info.value.code or 0), json.loads(out.splitlines()[-1]), out + err

    cat = f"{tmp_path}/cat"
    for seed in (1, 2):
        run = write_run(f"{tmp_path}/run{seed}", mixed_tables(seed), name=f"r{seed}")
        publish.run(Publish(run=(run,), catalog=cat))
    code, record, _ = call("select", cat, "--where", "p_lsbg > 0.9", "--cone", "10,0,36000", "-o", f"{tmp_path}/o.fits")
    assert (code, record["rows"]) == (0, len(Table.read(f"{tmp_path}/o.fits")))
    code, record, text = call("versions", cat)
    assert (code, record["current"], [v["rows"] for v in record["versions"]]) == (0, "v0002", [2979, 2979])
    assert "* v0002" in text
    assert call("versions", cat, "--rollback", "v0001")[1]["before"] == "v0002"
    code, record, text = call("versions", cat, "--expire", "1", "--dry-run")
    assert (code, record["removed"]) == (0, [])
    assert call("versions", cat, "--rollback", "v0002")[0] == 0
    code, record, text = call("versions", cat, "--expire", "1", "--dry-run")
    assert (record["removed"], record["removed_bytes"] > 10_000) == (["v0001"], True)
    assert Path(f"{cat}/v0001/cat").is_dir()
    assert call("versions", cat, "--expire", "1")[1]["removed"] == ["v0001"]
    assert call("versions", cat, "--rollback", "v0001")[0] == 2
    assert call("versions", cat, "--rollback", "first")[0] == 2
    assert call("versions", cat, "--dry-run")[0] == 2
    assert call("versions", cat, "--expire", "0")[0] == 2
    assert call("select", cat, "--where", "p > 1", "-o", f"{tmp_path}/p.vot")[0] == 2
