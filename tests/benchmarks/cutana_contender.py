"""Cutana at its own settings, run by an interpreter that has it: TILE_FOLDER POSITIONS.csv OUTPUT_FOLDER.

Prints one JSON line: seconds of the run, CPU-seconds of all its processes (imports too), and the number of cut-outs.
Imports nothing of ours.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path

import cutana  # type: ignore[import-not-found]
import zarr  # type: ignore[import-not-found]

SIDE_PIX = 128


def main() -> None:
    tile, positions, output = (Path(word) for word in sys.argv[1:4])
    files = [str(tile / f"T000_{band}.fits") for band in "zrg"]
    rows = positions.read_text().split()
    catalogue = output / "sources.csv"
    output.mkdir(parents=True, exist_ok=True)
    lines = [f'{row},{SIDE_PIX},"{files!r}"' for row in rows[1:]]
    catalogue.write_text("\n".join(["SourceID,RA,Dec,diameter_pixel,fits_file_paths", *lines]))
    config = cutana.get_default_config()
    config.source_catalogue = str(catalogue)
    config.output_dir = str(output / "out")
    config.target_resolution = SIDE_PIX // 2
    config.data_type = "uint8"
    config.selected_extensions = [{"name": f"T000_{band}", "ext": "PrimaryHDU"} for band in "zrg"]
    config.channel_weights = {
        f"T000_{band}": [float(channel == number) for channel in range(3)] for number, band in enumerate("zrg")
    }
    started = time.perf_counter()
    result = cutana.Orchestrator(config).run()
    seconds = time.perf_counter() - started
    cpu_seconds = sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
    images = sum(zarr.open(str(path), mode="r")["images"].shape[0] for path in sorted(output.rglob("images.zarr")))
    print(
        json.dumps(
            {
                "seconds": seconds,
                "cpu_seconds": cpu_seconds,
                "images": images,
                "version": version("cutana"),
                "status": str(result)[:500],
            }
        )
    )


if __name__ == "__main__":
    main()
