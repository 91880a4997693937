"""Labelled cut-outs from simulated tiles: detect, cut the sample, match to the truth, cut out. Used by `simulate`.

A tile is simulated, searched and cut in one Ray task; only its cut-outs and their features leave the worker.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from deepshadows import settings, storage
from deepshadows.outcomes import Failure, Summary
from deepshadows.schema import is_fatal
from deepshadows.sky import stretch, surveys
from deepshadows.sky.cutouts import Geometry, cut
from deepshadows.sky.cuts import des_cuts
from deepshadows.sky.extraction import detect
from deepshadows.sky.footprints import unit_vectors
from deepshadows.sky.matching import AMBIGUOUS, ARTIFACT, LSBG, label_by_truth
from deepshadows.sky.shards import Cutouts, concatenate, write_shard
from deepshadows.sky.simulation import as_tile, simulate_tile
from deepshadows.verbs.progress import track
from deepshadows.verbs.tasks import in_order

MATCH_RADIUS_ARCSEC = 3.0
TOO_BRIGHT_MAG = 0.75
SPACING_ARCSEC = 8.0
"""Of several artifacts closer than this only the brightest is taken: pieces of one structure look alike."""
FAINT_MAG_G, FAINT_EVERY = 22.3, 3
"""Where the DES catalogue of LSBGs ends; of fainter detections a third is taken."""
FEATURES = "_features.parquet"
"""Beside the shards: what `detect` measured of each cut-out, with its label."""
SHARD_ROWS = 10_000
BARREN_TILES = 100
"""So many tiles in a row without one object of a class still wanted: the settings cannot give any."""

_STRETCH = {"des": stretch.DES, "hsc": stretch.HSC}


@dataclass(frozen=True)
class Sample:
    """Cut-outs and, row by row, what `detect` measured of them."""

    cutouts: Cutouts
    features: pa.Table

    def take(self, rows: NDArray[Any]) -> Sample:
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Sample(self.cutouts.take(rows), self.features.take(pa.array(rows)))


def labelled_cutouts(survey: str, number: int, seed: int, size_pix: int, geometry: Geometry) -> Sample:
    """Cut-outs of the detections of one simulated tile that pass the DES cuts, have a sure label and stand apart.

    Faint ones of DES, of either class, are thinned out: see `FAINT_MAG_G`.
    """
    simulated = simulate_tile(surveys.by_name(survey), number, seed, size_pix)
    table = detect(as_tile(simulated, ("g", "r", "i", "z")))
    keep, _ = des_cuts(table, simulated.survey.pixel_scale_arcsec)
    ra, dec, mag_g = (np.array(table[name]) for name in ("ra", "dec", "mag_auto_g"))
    truth = simulated.truth()
    label = label_by_truth(ra, dec, truth, MATCH_RADIUS_ARCSEC)
    label[(label == LSBG) & outshone(ra, dec, mag_g, truth)] = AMBIGUOUS
    taken = (survey != "des") | (mag_g < FAINT_MAG_G) | (np.arange(len(table)) % FAINT_EVERY == 0)
    chosen = np.flatnonzero(keep & taken & (label >= 0))
    apart = (label[chosen] == LSBG) | standing_apart(ra[chosen], dec[chosen], mag_g[chosen])
    rows = chosen[apart]
    stack = cut(as_tile(simulated, geometry.bands), ra[rows], dec[rows], geometry)
    cutouts = Cutouts(
        object_id=table["object_id"].combine_chunks().take(rows),
        ra=ra[rows],
        dec=dec[rows],
        images=stack.images,
        flags=stack.flags,
        label=label[rows],
        fov_arcsec=geometry.fov_arcsec,
        stretch=geometry.stretch.name,
        bands=geometry.bands,
    )
    features = table.take(pa.array(rows)).append_column("label", pa.array(label[rows]))
    return Sample(cutouts, features).take(~is_fatal(stack.flags))


def outshone(
    ra: NDArray[np.float64], dec: NDArray[np.float64], mag_g: NDArray[np.floating], truth: pa.Table
) -> NDArray[np.bool_]:
    """True where a detection is brighter than the nearest LSBG by `TOO_BRIGHT_MAG`: other light lies over it."""
    lsbgs = truth.filter(pc.equal(truth["label"], LSBG))
    if not lsbgs.num_rows:
        return np.zeros(len(ra), dtype=bool)
    tree = cKDTree(unit_vectors(lsbgs["ra"].to_numpy(), lsbgs["dec"].to_numpy()))
    _, nearest = tree.query(unit_vectors(ra, dec))
    return np.asarray(mag_g < lsbgs["mag_g"].to_numpy()[nearest] - TOO_BRIGHT_MAG)


def standing_apart(ra: NDArray[np.float64], dec: NDArray[np.float64], mag: NDArray[np.floating]) -> NDArray[np.bool_]:
    """True for rows without a brighter one within `SPACING_ARCSEC` that is itself kept, brightest first."""
    kept: list[int] = []
    apart = np.zeros(len(ra), dtype=bool)
    cos_dec = np.cos(np.deg2rad(dec))
    for row in np.argsort(mag, kind="stable"):
        away = np.hypot((ra[kept] - ra[row]) * cos_dec[row], dec[kept] - dec[row])
        apart[row] = not (away < SPACING_ARCSEC / 3600).any()
        if apart[row]:
            kept.append(int(row))
    return apart


_KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
"""To glibc: a tile's images are freed and taken anew, and to get them from the kernel takes a tenth of the time."""

_labelled_cutouts = ray.remote(num_cpus=1, runtime_env={"env_vars": _KEEP_FREED_MEMORY})(labelled_cutouts)


@dataclass
class Collection:
    """How many of each class are still wanted, and the rows not yet written."""

    wanted: dict[int, int]
    folder: str
    pending: list[Cutouts] = field(default_factory=list)
    features: list[pa.Table] = field(default_factory=list)
    shards: int = 0
    barren: int = 0

    @property
    def complete(self) -> bool:
        return not any(self.wanted.values())

    def add(self, sample: Sample) -> None:
        """Take what is wanted of one tile, in its order; write a shard when there is enough."""
        cutouts = sample.cutouts
        assert cutouts.label is not None
        rows = [np.flatnonzero(cutouts.label == label)[:count] for label, count in self.wanted.items()]
        for label, chosen in zip(self.wanted, rows, strict=True):
            self.wanted[label] -= len(chosen)
        chosen = np.sort(np.concatenate(rows))
        self.barren = 0 if len(chosen) else self.barren + 1
        if self.barren >= BARREN_TILES:
            raise Failure(f"{BARREN_TILES} tiles in a row gave no object of a class still wanted: {self.wanted}")
        if len(chosen):
            taken = sample.take(chosen)
            self.pending.append(taken.cutouts)
            self.features.append(taken.features)
        if sum(map(len, self.pending)) >= SHARD_ROWS or self.complete:
            self._write()

    def _write(self) -> None:
        if self.pending:
            write_shard(storage.join(self.folder, f"cutouts-{self.shards:05d}.parquet"), concatenate(self.pending))
            self.shards += 1
            self.pending = []

    def write_features(self) -> None:
        """All rows of all shards in one table."""
        storage.write_table(storage.join(self.folder, FEATURES), pa.concat_tables(self.features))


def simulate_cutouts(wanted: settings.Simulate, output: str) -> Summary:
    """Simulate tiles, in order, until there are `wanted.cutouts` of each class; write them as shards."""
    each = wanted.cutouts
    collection = Collection({LSBG: each, ARTIFACT: each}, output)
    tiles = 0
    for tiles in track(_fill(collection, wanted), "simulating cut-outs", 2 * each):  # noqa: B007 -- the last one counts
        pass
    collection.write_features()
    return Summary(
        verb="simulate",
        output=output,
        figures={"tiles": tiles, "rows": 2 * each, "lsbg": each, "artifacts": each, "shards": collection.shards},
        text=(
            f"{each} LSBGs and {each} artifacts that pass the DES cuts, from {tiles} tiles of "
            f"{wanted.tile_size_pix} px as {wanted.survey.upper()}, seed {wanted.seed}",
            f"{collection.shards} shards in {output}",
        ),
    )


def _fill(collection: Collection, wanted: settings.Simulate) -> Iterator[int]:
    """Yields the number of tiles so far, once for each cut-out taken."""
    geometry = Geometry(fov_arcsec=wanted.fov_arcsec or Geometry.fov_arcsec, stretch=_STRETCH[wanted.survey])
    items = ((wanted.survey, number, wanted.seed, wanted.tile_size_pix, geometry) for number in itertools.count())
    results = in_order(_labelled_cutouts, items)
    for tiles, sample in enumerate(results, start=1):
        before = sum(collection.wanted.values())
        collection.add(sample)
        yield from itertools.repeat(tiles, before - sum(collection.wanted.values()))
        if collection.complete:
            results.close()
            return
