"""A version that continues another holds what a full publish would, and copies what the change does not touch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from astropy.coordinates import angular_separation
from cdshealpix.nested import healpix_to_lonlat
from hats.io.validation import is_valid_catalog
from hats.pixel_math import get_margin
from hats.pixel_math.healpix_shim import margin2order

from deepshadows import storage
from deepshadows.catalog import collection, hats_files, provenance
from deepshadows.catalog.continuation import continue_from
from deepshadows.catalog.hats_files import hats_path
from deepshadows.catalog.healpix import Partition, cover_sky
from deepshadows.catalog.id_index import read_parts
from deepshadows.catalog.partitions import read_table
from deepshadows.catalog.unit_rows import partitions_in, read_unit_rows
from deepshadows.catalog.version_folder import VersionFolder
from deepshadows.run.manifest import read_manifest
from deepshadows.schema import Flag
from deepshadows.settings import Publish
from deepshadows.verbs import publish
from deepshadows.verbs.version_plan import plan_version
from deepshadows.verbs.version_writing import Tally, new_version, write_files, write_version
from tests.catalog.finished_runs import rows, write_run

pytestmark = [
    pytest.mark.usefixtures("ray_local"),
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning", "ignore:PosixUPath on python"),
]
PARTITION_ROWS = 300


def field(number: int, ra_deg: float, dec_deg: float, count: int = 300, unplaced: int = 0) -> pa.Table:
    """One unit: objects within some 6 arcmin, dense enough that margins of 10 arcsec have rows."""
    rng = np.random.default_rng(number)
    ra, dec = ra_deg + rng.uniform(0, 0.1, count), dec_deg + rng.uniform(0, 0.1, count)
    flags = np.zeros(count, np.int32)
    flags[:unplaced] = Flag.NO_POSITION.bit
    ra[:unplaced] = dec[:unplaced] = np.nan
    return rows(list(range(number * 1000, number * 1000 + count)), ra, dec, flags)


def full(place: str, name: str, tables: Sequence[pa.Table]) -> VersionFolder:
    run = write_run(f"{place}/{name}-run", tables, name=name)
    catalog = f"{place}/{name}"
    publish.run(Publish(run=(run,), catalog=catalog, partition_rows=PARTITION_ROWS))
    return collection.current(catalog)


def continued(place: str, catalog: str, name: str, tables: Sequence[pa.Table], gone: Sequence[str]) -> Tally:
    """The next version of a catalogue: units that go, named RUN/UNIT, and a run of those that come."""
    run = write_run(f"{place}/{name}-run", tables, name=name)
    manifest = read_manifest(run)
    facts = publish._facts(run, manifest)
    base = continue_from(collection.current(catalog), gone)
    before = provenance.facts_of(collection.read_properties(base.folder.table_url).model_extra or {})
    with new_version(catalog) as version:
        plan = plan_version(list(publish.sources_of(run, manifest)), pa.int64(), PARTITION_ROWS, 10.0, base)
        tally = write_version(version, plan, keep_first=False)
        described = provenance.properties("x", version.name, [*before, facts], {}, {})
        write_files(version, plan, tally, described)
        hats_files.check_version(version)
    collection.swap(version)
    return tally


def everything(version: VersionFolder) -> pa.Table:
    names = ["object_id", "ra", "dec", "logit", "p_lsbg", "flags"]
    tables = [table.select(names) for table in collection.iterate_version(version)]
    return pa.concat_tables([*tables, read_table(version.unplaced_url, names).replace_schema_metadata(None)]).sort_by(
        "object_id"
    )


def check_beside(version: VersionFolder) -> None:
    """Margin, index, unit counts and sky map hold exactly what the table says they must; told by other means."""
    placed = pa.concat_tables(list(collection.iterate_version(version)))
    index = placed["_healpix_29"].to_numpy()
    ids = placed["object_id"].to_numpy()
    partitions = collection.partitions_of(version.table_url)
    order = margin2order(10 / 60)
    expected: dict[str, list[int]] = {}
    for cell in cover_sky(partitions):
        border = np.array(get_margin(cell.order, cell.pixel, order - cell.order))
        if beside := sorted(ids[np.isin(index >> 2 * (29 - order), border)].tolist()):
            expected[cell.path] = beside
    margins = collection.partitions_of(version.margin_url)
    found = {
        cell.path: sorted(read_table(f"{version.margin_url}/{cell.path}")["object_id"].to_pylist()) for cell in margins
    }
    assert found == expected
    assert expected

    entries = [read_table(f"{version.index_url}/{part.path}") for part in read_parts(version.index_url)]
    where = sorted((row["object_id"], row["Norder"], row["Npix"]) for row in pa.concat_tables(entries).to_pylist())
    held = [(part, read_table(f"{version.table_url}/{part.path}", ["object_id"])["object_id"]) for part in partitions]
    assert where == sorted((value, part.order, part.pixel) for part, column in held for value in column.to_pylist())

    units = read_unit_rows(version)
    assert partitions_in(units) == [Partition(part.order, part.pixel, len(column)) for part, column in held]
    assert pc.sum(units["rows"]).as_py() == len(everything(version))
    skymap = hats_files.read_skymap(version.table_url)
    assert np.array_equal(skymap, np.bincount(index >> 2 * (29 - 8), minlength=len(skymap)))


def etags(folder: str) -> dict[str, int]:
    return {
        storage.relative(entry.url, folder): entry.size_bytes for entry in storage.list_objects(folder, (".parquet",))
    }


def test_a_continued_version_holds_what_a_full_one_does(place: str) -> None:
    """Units go, come, come elsewhere, split a partition, empty one; each time all is as if it were made at once."""
    a, b, c, d = field(1, 10, 0, unplaced=3), field(2, 10.1, 0), field(3, 200, 40), field(4, 200.1, 40.1)
    e, f = field(5, 10, 0.1, count=900), field(6, 300, -60)
    catalog = full(place, "grown", [a, b, c]).catalog
    check_beside(collection.current(catalog))
    steps = [
        ("plus-d", [d], [], [a, b, c, d]),
        ("less-b", [], ["grown/" + f"{1:016x}"], [a, c, d]),
        ("e-splits", [e, f], ["grown/" + f"{0:016x}"], [c, d, e, f]),
        ("less-most", [b], ["plus-d/" + f"{0:016x}", "e-splits/" + f"{0:016x}", "grown/" + f"{2:016x}"], [b, f]),
    ]
    for name, come, gone, held in steps[:2] if storage.is_s3(place) else steps:  # a store takes its time
        continued(place, catalog, name, come, gone)
        version = collection.current(catalog)
        expected = pa.concat_tables(held).select(everything(version).column_names).sort_by("object_id")
        assert everything(version).equals(expected.replace_schema_metadata(None).cast(everything(version).schema)), name
        check_beside(version)
        assert is_valid_catalog(hats_path(catalog), strict=True)
    runs = json.loads((collection.read_properties(version.table_url).model_extra or {})["deepshadows_runs"])
    assert [run["run"] for run in runs][:3] == ["grown", "plus-d", "less-b"]


def inodes(version: VersionFolder) -> dict[str, int]:
    """The files of a version on disk; on one disk a copy is a hard link, the same inode, no byte written."""
    found = [entry.url for entry in storage.list_objects(version.url, (".parquet",))]
    return {storage.relative(url, version.url): Path(url).stat().st_ino for url in found}


def test_what_a_change_does_not_touch_is_copied(tmp_path: Path) -> None:
    catalog = full(str(tmp_path), "cat", [field(1, 10, 0), field(2, 200, 40)]).catalog
    before = inodes(collection.current(catalog))
    tally = continued(str(tmp_path), catalog, "next", [field(3, 200.05, 40.05)], [])
    version = collection.current(catalog)
    after = inodes(version)
    rewritten = {f"cat/{entry.path}" for entry in tally.rewritten}
    for path in after:
        part = path.split("/")[0]
        far = part in ("cat", "cat_margin") and near_the_change(path) is False
        assert not far or after[path] == before[path], path
    assert rewritten
    assert all(near_the_change(path) for path in rewritten)


def near_the_change(path: str) -> bool:
    """Whether a partition or margin lies within some 45 degrees of ra 200, dec 40, by its HEALPix pixel."""
    order, pixel = (int(path.split(f"{name}=")[1].split("/")[0].split(".")[0]) for name in ("Norder", "Npix"))
    lon, lat = healpix_to_lonlat(np.array([pixel], np.uint64), order)
    return bool(angular_separation(lon[0].rad, lat[0].rad, np.radians(200), np.radians(40)) < np.pi / 4)


def test_the_index_part_of_objects_scored_again_is_copied(tmp_path: Path) -> None:
    unit = field(1, 10, 0)
    catalog = full(str(tmp_path), "cat", [unit]).catalog
    before = collection.current(catalog)
    continued(str(tmp_path), catalog, "again", [unit], ["cat/" + f"{0:016x}"])
    after = collection.current(catalog)
    (old,), (new,) = read_parts(before.index_url), read_parts(after.index_url)
    assert Path(f"{before.index_url}/{old.path}").samefile(f"{after.index_url}/{new.path}")
    assert set(read_unit_rows(after)["run"].to_pylist()) == {"again"}
