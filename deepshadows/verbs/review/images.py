"""Images of a few objects, read again from the shards or tiles that a run was made from. No Ray, no torch.

Of a shard the row groups of these objects are read, of a tile the rows around them; input that has gone or changed
gives a reason in place of the image, never another image.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.outcomes import Failure, InputError, StorageError
from deepshadows.run.units import Unit, UnitKind
from deepshadows.schema import IMAGE_SHAPE
from deepshadows.sky.cutouts import Geometry, bring_to_field, cut
from deepshadows.sky.row_groups import read_rows
from deepshadows.sky.shards import check_row_groups, cutouts_from_table, open_shard
from deepshadows.sky.stretch import stretch_named
from deepshadows.sky.tiles import BandSource, TileFiles, open_tile

Image = NDArray[np.uint8]
Find = Callable[[str, Sequence[str]], Mapping[str, Unit]]
"""Units of a run, by name; a `Failure` says why there are none."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One object: what identifies it, and which unit of which run scored it."""

    object_id: Any
    ra: float | None
    dec: float | None
    unit: str
    run: str


def read_images(wanted: Collection[Wanted], preprocessing: Mapping[str, Any], find: Find) -> dict[Wanted, Image | str]:
    """Images uint8 (64, 64, 3), or for an object why there is none.

    Parameters
    ----------
    preprocessing : dict
        Field, bands and stretch of the network's images.
    find : callable
        Work units by run and name.
    """
    found: dict[Wanted, Image | str] = {}
    by_run: dict[str, dict[str, list[Wanted]]] = defaultdict(lambda: defaultdict(list))
    for one in wanted:
        by_run[one.run][one.unit].append(one)
    for run, by_unit in by_run.items():
        units: Mapping[str, Unit] = {}
        reason = f"its work unit is not among those of run {run}"
        try:
            units = find(run, list(by_unit))
        except Failure as error:
            reason = str(error)
        for unit, objects in by_unit.items():
            found.update(dict.fromkeys(objects, reason))
            if unit in units:
                found.update(_of_unit(units[unit], objects, preprocessing))
    return found


def _of_unit(unit: Unit, objects: list[Wanted], preprocessing: Mapping[str, Any]) -> dict[Wanted, Image | str]:
    """Images of some objects of one unit; what cannot be read is its reason, for all of them."""
    try:
        geometry = Geometry(
            size_pix=IMAGE_SHAPE[0],
            fov_arcsec=float(preprocessing["fov_arcsec"]),
            bands=tuple(preprocessing["bands"]),
            stretch=stretch_named(str(preprocessing["stretch"])),
        )
        read = _from_tile if unit.kind == UnitKind.TILE else _from_shard
        images = read(unit, objects, geometry)
        return {one: images.get(one, "no image was given") for one in objects}
    except (InputError, StorageError, KeyError, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, Failure) else f"{unit.name}: {type(error).__name__}: {error}"
        return dict.fromkeys(objects, reason)


def _from_tile(unit: Unit, objects: list[Wanted], geometry: Geometry) -> dict[Wanted, Image]:
    if not unit.source:
        raise InputError(f"tile {unit.tile}: where its bands lie was in the run's plan, which is gone")
    source = json.loads(unit.source)
    bands = {band: BandSource(**{**at, "shape": tuple(at["shape"])}) for band, at in source["bands"].items()}
    for at in bands.values():
        _check_unchanged(at.url, at.etag)
    placed = [one for one in objects if one.ra is not None and one.dec is not None]
    ra, dec = (np.array([getattr(one, name) for one in placed], np.float64) for name in ("ra", "dec"))
    images = cut(open_tile(TileFiles(unit.tile, bands), geometry.bands), ra, dec, geometry).images
    return dict(zip(placed, images, strict=True))


def _from_shard(unit: Unit, objects: list[Wanted], geometry: Geometry) -> dict[Wanted, Image]:
    if unit.kind != UnitKind.SHARD:
        return {}
    _check_unchanged(unit.url, unit.etag)
    file = open_shard(unit.url)
    check_row_groups(file, unit.url, unit.first_row, unit.rows)
    try:
        ids = read_rows(file, unit.first_row, unit.rows, ["object_id"])["object_id"].to_pylist()
        rows: dict[Any, int] = {}
        for row, object_id in enumerate(ids, unit.first_row):
            rows.setdefault(object_id, row)
        by_row = {rows[one.object_id]: one for one in objects if one.object_id in rows}
        found = {}
        for row, table in _single_rows(file, sorted(by_row)):
            part = cutouts_from_table(table, unit.url)
            found[by_row[row]] = bring_to_field(part.images, np.full(1, part.fov_arcsec), geometry)[0][0]
    except storage.ARROW_ERRORS as error:
        raise storage.arrow_failure(unit.url, error) from error
    return found


def _single_rows(file: pq.ParquetFile, rows: Sequence[int]) -> Iterator[tuple[int, pa.Table]]:
    """Tables of one row each; each row group is read once."""
    ends = np.cumsum([file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)])
    by_group: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        by_group[int(np.searchsorted(ends, row, side="right"))].append(row)
    for number, inside in by_group.items():
        group = file.read_row_group(number)
        first = int(ends[number]) - group.num_rows
        for row in inside:
            yield row, group.slice(row - first, 1)


def _check_unchanged(url: str, etag: str) -> None:
    if etag and storage.stat(url).etag != etag:
        raise InputError(f"{url}: changed since it was scored")
