"""What a billion detections cost: hours, bytes and requests for two surveys, from what the benchmarks measured.

    python -m tests.benchmarks.survey_costs [--readme]

Rates come from figures.json, never from here; what is not in it is said not to be measured. `--readme` puts the table
into the README between its two markers. A tile costs CPU time for its pixels and for each detection (a line through the
measured times of one tile with few and with many); scoring, the CPU time of the scorer alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepshadows.run.units import TILE_UNIT_ROWS
from tests.benchmarks.results import read_figures

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = (
    "<!-- survey costs: python -m tests.benchmarks.survey_costs --readme -->\n",
    "<!-- end of survey costs -->\n",
)
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
    """Compressed."""
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
        read_tb = units * survey.bands * survey.tile_band_mb / 1e6  # each unit opens its tile
        row["TB read, written"] = f"{read_tb:,.1f}, {BILLION * requests['score_bytes_per_row'] / 1e12:,.2f}"
        asked = tiles * survey.bands * requests["header_requests_per_file"] + units * requests["tile_unit_requests"]
        row["S3 requests"] = f"{asked / 1e6:,.2f} million"
    return row


def table(figures: Figures) -> list[str]:
    rows = [costs(figures, survey) for survey in SURVEYS]
    names = list(rows[0])
    lines = ["| a billion detections | " + " | ".join(names[1:]) + " |", "|---" * len(names) + "|"]
    return [*lines, *("| " + " | ".join(row.values()) + " |" for row in rows)]


def with_table(readme: str, lines: list[str]) -> str:
    """The README with the lines between its markers."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + "\n".join(lines) + "\n" + END + rest.split(END)[1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--readme", action="store_true")
    lines = table(read_figures())
    print("\n".join(lines))
    if parser.parse_args().readme:
        README.write_text(with_table(README.read_text(), lines))


if __name__ == "__main__":
    main()
