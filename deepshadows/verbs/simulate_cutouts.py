"""Labelled cut-outs from simulated tiles: detect, cut the sample, match to the truth, cut out. Used by `simulate`.

A tile is simulated, searched and cut in one Ray task; only its cut-outs leave the worker.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import ray

from deepshadows import settings, storage
from deepshadows.outcomes import Failure, Summary
from deepshadows.schema import is_fatal
from deepshadows.sky import stretch, surveys
from deepshadows.sky.cutouts import Geometry, cut
from deepshadows.sky.cuts import des_cuts
from deepshadows.sky.extraction import detect
from deepshadows.sky.matching import ARTIFACT, LSBG, label_by_truth
from deepshadows.sky.shards import Cutouts, concatenate, write_shard
from deepshadows.sky.simulation import as_tile, simulate_tile
from deepshadows.verbs.progress import track
from deepshadows.verbs.tasks import in_order

MATCH_RADIUS_ARCSEC = 3.0
SHARD_ROWS = 10_000
BARREN_TILES = 100
"""So many tiles in a row without one object of a class still wanted: the settings cannot give any."""

_STRETCH = {"des": stretch.DES, "hsc": stretch.HSC}


def labelled_cutouts(survey: str, number: int, seed: int, size_pix: int) -> Cutouts:
    """Cut-outs of every detection of one simulated tile that passes the DES cuts and has a sure label."""
    simulated = simulate_tile(surveys.by_name(survey), number, seed, size_pix)
    table = detect(as_tile(simulated, ("g", "r", "i", "z")))
    keep, _ = des_cuts(table, simulated.survey.pixel_scale_arcsec)
    ra, dec = np.array(table["ra"]), np.array(table["dec"])
    label = label_by_truth(ra, dec, simulated.truth(), MATCH_RADIUS_ARCSEC)
    rows = np.flatnonzero(keep & (label >= 0))
    geometry = Geometry(stretch=_STRETCH[survey])
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
    return cutouts.take(~is_fatal(stack.flags))


_labelled_cutouts = ray.remote(num_cpus=1)(labelled_cutouts)


@dataclass
class Collection:
    """How many of each class are still wanted, and the rows not yet written."""

    wanted: dict[int, int]
    folder: str
    pending: list[Cutouts] = field(default_factory=list)
    shards: int = 0
    barren: int = 0

    @property
    def complete(self) -> bool:
        return not any(self.wanted.values())

    def add(self, cutouts: Cutouts) -> None:
        """Take what is wanted of one tile, in its order; write a shard when there is enough."""
        assert cutouts.label is not None
        rows = [np.flatnonzero(cutouts.label == label)[:count] for label, count in self.wanted.items()]
        for label, chosen in zip(self.wanted, rows, strict=True):
            self.wanted[label] -= len(chosen)
        chosen = np.sort(np.concatenate(rows))
        self.barren = 0 if len(chosen) else self.barren + 1
        if self.barren >= BARREN_TILES:
            raise Failure(f"{BARREN_TILES} tiles in a row gave no object of a class still wanted: {self.wanted}")
        if len(chosen):
            self.pending.append(cutouts.take(chosen))
        if sum(map(len, self.pending)) >= SHARD_ROWS or self.complete:
            self._write()

    def _write(self) -> None:
        if self.pending:
            write_shard(storage.join(self.folder, f"cutouts-{self.shards:05d}.parquet"), concatenate(self.pending))
            self.shards += 1
            self.pending = []


def simulate_cutouts(wanted: settings.Simulate, output: str) -> Summary:
    """Simulate tiles, in order, until there are `wanted.cutouts` of each class; write them as shards."""
    each = wanted.cutouts
    collection = Collection({LSBG: each, ARTIFACT: each}, output)
    tiles = 0
    for tiles in track(_fill(collection, wanted), "simulating cut-outs", 2 * each):  # noqa: B007 -- the last one counts
        pass
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
    items = ((wanted.survey, number, wanted.seed, wanted.tile_size_pix) for number in itertools.count())
    results = in_order(_labelled_cutouts, items)
    for tiles, cutouts in enumerate(results, start=1):
        before = sum(collection.wanted.values())
        collection.add(cutouts)
        yield from itertools.repeat(tiles, before - sum(collection.wanted.values()))
        if collection.complete:
            results.close()
            return
