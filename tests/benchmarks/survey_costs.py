"""What a billion detections cost: hours, bytes and requests for two surveys, from what the benchmarks measured.

    python -m tests.benchmarks.survey_costs [--readme]

Rates come from figures.json, never from here; what is not in it is said not to be measured. `--readme` puts the table
into the README between its two markers. A tile costs CPU time for its pixels and for each detection (a line through the
measured times of one tile with few and with many); scoring, the CPU time of the scorer alone. Requests are those of a
unit, and of each block of rows and band that the package reads of such a tile.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from astropy.wcs import WCS

from deepshadows.run.units import TILE_UNIT_ROWS
from deepshadows.sky.cutouts import Geometry
from deepshadows.sky.presets import PRESETS
from deepshadows.sky.stretch import DES
from deepshadows.sky.tile_rows import Pixels, TileRows, each_window
from tests.benchmarks.results import read_figures
from tests.readme_tables import README, with_table

COMMAND = "python -m tests.benchmarks.survey_costs --readme"
BILLION = 10**9
MEASURED_PIXELS = 3 * 4_000**2
"""Of the tile that bench_cutouts measures, three bands."""
NOT_MEASURED = "not measured"
Figures = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a survey's tiles hold."""

    name: str
    tile_pix: int
    bands: int
    tile_band_mb: float
    """Fpacked, science alone."""
    detections_per_tile: int
    resampled_as: str | None = None
    """Where its pixels are not binned 2x2: a survey of that scale whose rate is measured."""

    @property
    def units_per_tile(self) -> int:
        """Each opens the tile."""
        return -(-self.detections_per_tile // TILE_UNIT_ROWS)


SURVEYS = (
    # 10,169 tiles of 10,000 pixels and 700 million objects (Y6); fpack takes about a byte a pixel
    Survey(name="DES-like", tile_pix=10_000, bands=3, tile_band_mb=100.0, detections_per_tile=69_000),
    # patches of 0.19 degrees at 0.2 arcsec; 20 billion objects on 18,000 square degrees
    Survey(
        name="LSST-like", tile_pix=3_400, bands=3, tile_band_mb=12.0, detections_per_tile=40_000, resampled_as="rubin"
    ),
)


def binned_blocks(height: int, width: int) -> int:
    """Blocks of rows in which a tile on S3 is read where its pixels are binned."""
    tile = TileRows(
        tile_id="", bands=(), shape=(height, width), wcs=WCS(), pixel_scale_arcsec=1.0, far=True, readers=()
    )
    return -(-height // tile.rows_at_once)


@dataclass
class _Asked:
    """A tile without pixels that keeps which rows are asked for; as much of a `Source` as `each_window` needs."""

    spans: list[tuple[int, int]] = field(default_factory=list)

    def rows(self, first: int, last: int) -> _Asked:
        self.spans.append((first, last))
        return self

    def pixels(self, rows: slice, columns: slice) -> Pixels:
        return Pixels(np.empty((0, 0, 0), np.float32))


def reads(survey: Survey) -> tuple[int, float]:
    """In how many blocks of rows a unit reads a band of its tile, and how often each row.

    Fields that are resampled are read in groups that overlap; the detections are spread evenly.
    """
    side = survey.tile_pix
    if survey.resampled_as is None:
        return binned_blocks(side, side), 1.0
    field_pix = int(np.ceil(Geometry(stretch=DES).fov_arcsec / PRESETS[survey.resampled_as].pixel_scale_arcsec)) + 3
    first = np.linspace(0, side - field_pix, min(survey.detections_per_tile, TILE_UNIT_ROWS)).astype(np.int64)
    asked = _Asked()
    zero = np.zeros_like(first)
    spans = np.stack([first, first + field_pix, zero, zero + field_pix], axis=1)
    each_window(asked, spans, lambda number, pixels: None)  # type: ignore[arg-type]
    return len(asked.spans), sum(last - start for start, last in asked.spans) / side


def tile_requests(requests: Mapping[str, Any], survey: Survey) -> float:
    """Requests of one tile: its headers when the run is planned, then those of its units."""
    blocks, _ = reads(survey)
    a_unit = requests["fpack_requests_per_unit"]
    a_unit += blocks * survey.bands * requests["fpack_requests_per_block_and_band"]
    return float(survey.bands * requests["fpack_header_requests_per_file"] + survey.units_per_tile * a_unit)


def tile_cpu_s(figures: Figures, survey: Survey) -> float | None:
    """CPU seconds to open one tile, once a unit, and cut its detections."""
    measured = figures.get("cutouts_rates", {})
    few, many = (measured.get(f"fpack S3 {count}") for count in (1_000, 20_000))
    if not few or not many:
        return None
    each_s = (many["cpu_seconds"] - few["cpu_seconds"]) / 19_000
    opening_s = few["cpu_seconds"] - 1_000 * each_s
    if survey.resampled_as is not None:
        each_ms = figures.get("cutouts_resampled", {}).get(f"{survey.resampled_as}_cpu_ms")
        if each_ms is None:
            return None
        each_s = each_ms / 1000
    opening_s *= survey.bands * survey.tile_pix**2 / MEASURED_PIXELS
    return float(opening_s * survey.units_per_tile + each_s * survey.detections_per_tile)


def costs(figures: Figures, survey: Survey) -> dict[str, str]:
    """The row of a survey."""
    tiles = BILLION / survey.detections_per_tile
    units = tiles * survey.units_per_tile
    requests, classify, gpu = (figures.get(name, {}) for name in ("requests", "classify", "scorer_gpu"))
    cut_s = tile_cpu_s(figures, survey)
    row = {"survey": survey.name, "tiles": f"{tiles:,.0f}", "units": f"{units:,.0f}"}
    row["CPU-hours to cut"] = NOT_MEASURED if cut_s is None else f"{tiles * cut_s / 3600:,.0f}"
    score_us = classify.get("fast disk alone_us") or 1e3 * figures.get("cutouts_bound", {}).get("scoring_cpu_ms", 0)
    row["CPU-hours to score"] = f"{BILLION * score_us / 1e6 / 3600:,.0f}" if score_us else NOT_MEASURED
    row["GPU-hours"] = f"{BILLION / gpu['images_per_s'] / 3600:,.1f} ({gpu['device']})" if gpu else NOT_MEASURED
    row["TB read, written"] = row["S3 requests"] = NOT_MEASURED
    if requests:
        read_tb = units * survey.bands * survey.tile_band_mb * reads(survey)[1] / 1e6  # each unit opens its tile
        row["TB read, written"] = f"{read_tb:,.1f}, {BILLION * requests['score_bytes_per_row'] / 1e12:,.2f}"
        row["S3 requests"] = f"{tiles * tile_requests(requests, survey) / 1e6:,.2f} million"
    return row


def table(figures: Figures) -> list[str]:
    rows = [costs(figures, survey) for survey in SURVEYS]
    names = list(rows[0])
    lines = ["| a billion detections | " + " | ".join(names[1:]) + " |", "|---" * len(names) + "|"]
    return [*lines, *("| " + " | ".join(row.values()) + " |" for row in rows)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--readme", action="store_true")
    lines = table(read_figures())
    print("\n".join(lines))
    if parser.parse_args().readme:
        README.write_text(with_table(README.read_text(), COMMAND, lines))


if __name__ == "__main__":
    main()
