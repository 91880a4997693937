"""`simulate`: a survey whose truth is known, or labelled cut-outs from it. One Ray task a tile."""

from __future__ import annotations

import json
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc
import ray

from deepshadows import settings, storage
from deepshadows.outcomes import Summary, UsageError
from deepshadows.sky import surveys
from deepshadows.sky.simulation import fits_bytes, simulate_tile
from deepshadows.sky.tile_index import scan_tiles
from deepshadows.verbs.progress import track
from deepshadows.verbs.ray_session import ray_session
from deepshadows.verbs.simulate_cutouts import simulate_cutouts
from deepshadows.verbs.tasks import in_order

RECORD = "simulation.json"


def run(wanted: settings.Simulate) -> Summary:
    """Simulate tiles, their truth table and tile index; or, with `cutouts`, labelled shards.

    Raises
    ------
    UsageError
        The output folder holds another simulation.
    """
    output = storage.normalise(wanted.output)
    if wanted.cutouts == 0 and wanted.tiles == 0:
        raise UsageError("nothing to simulate: give --tiles or --cutouts")
    _claim(wanted, output)
    with ray_session(wanted.address):
        return simulate_cutouts(wanted, output) if wanted.cutouts else _simulate_tiles(wanted, output)


def _claim(wanted: settings.Simulate, output: str) -> None:
    """Write the settings down; a folder with other settings is refused, the same are simulated again."""
    url = storage.join(output, RECORD)
    record = json.dumps(wanted.model_dump(exclude={"address", "output"}), indent=1, sort_keys=True).encode()
    if not storage.create(url, record) and storage.read(url) != record:
        raise UsageError(f"{output}: holds a simulation with other settings ({RECORD}); choose another --output")


@ray.remote(num_cpus=1)
def _write_tile(survey: str, number: int, seed: int, size_pix: int, folder: str) -> pa.Table:
    """One tile: four FITS files written, its truth rows returned."""
    tile = simulate_tile(surveys.by_name(survey), number, seed, size_pix)
    for band in tile.survey.bands:
        storage.write(storage.join(folder, f"{tile.tile_id}_{band}.fits.fz"), fits_bytes(tile, band))
    return tile.truth()


def _simulate_tiles(wanted: settings.Simulate, output: str) -> Summary:
    folder = storage.join(output, "tiles")
    items = ((wanted.survey, number, wanted.seed, wanted.tile_size_pix, folder) for number in range(wanted.tiles))
    truth = pa.concat_tables(track(in_order(_write_tile, items), "simulating tiles", wanted.tiles))
    storage.write_table(storage.join(output, "truth.parquet"), truth)
    index = scan_tiles(folder)
    storage.write_table(storage.join(output, "tile_index.parquet"), index.to_table())
    kinds = Counter(truth["kind"].to_pylist())
    lsbg = int(pc.sum(truth["label"]).as_py() or 0)
    return Summary(
        verb="simulate",
        output=output,
        figures={"tiles": wanted.tiles, "objects": truth.num_rows, "lsbg": lsbg, "kinds": dict(sorted(kinds.items()))},
        text=(
            f"{wanted.tiles} tiles of {wanted.tile_size_pix} px as {wanted.survey.upper()}, seed {wanted.seed}",
            f"{truth.num_rows} objects, {lsbg} of them LSBGs: " + ", ".join(f"{n} {k}" for k, n in kinds.most_common()),
            f"tiles in {folder}, truth in {output}/truth.parquet",
        ),
    )
