"""The table of costs follows the figures, and the README shows the table of the figures that are committed."""

from __future__ import annotations

import pytest

from tests.benchmarks.results import read_figures
from tests.benchmarks.survey_costs import (
    COMMAND,
    NOT_MEASURED,
    SURVEYS,
    Survey,
    costs,
    reads,
    table,
)
from tests.readme_tables import README, with_table

SMALL = Survey(name="small", tile_pix=2_000, bands=3, tile_band_mb=10.0, detections_per_tile=250_000)
FIGURES = {
    "cutouts_rates": {
        "fpack S3 1000": {"cpu_seconds": 5.0},
        "fpack S3 20000": {"cpu_seconds": 24.0},
    },
    "classify": {"fast disk alone_us": 200.0},
    "requests": {
        "fpack_header_requests_per_file": 2.0,
        "fpack_requests_per_unit": 9,
        "fpack_requests_per_block_and_band": 2.0,
        "score_bytes_per_row": 100.0,
    },
}


def test_costs_are_those_of_the_figures() -> None:
    """4,000 tiles of three units: (4 s a full tile / 4 + 1 ms x 250,000) a tile; 12,000 units of 30 MB, one block."""
    row = costs(FIGURES, SMALL)
    assert (row["tiles"], row["units"]) == ("4,000", "12,000")
    assert row["CPU-hours to cut"] == f"{4_000 * (3 * 4 / 4 + 250) / 3600:,.0f}"
    assert row["CPU-hours to score"] == "56"
    assert row["GPU-hours"] == NOT_MEASURED
    assert row["TB read, written"] == "0.4, 0.10"
    assert row["S3 requests"] == f"{(4_000 * 3 * 2 + 12_000 * (9 + 3 * 2)) / 1e6:.2f} million"


def test_a_tile_of_des_is_read_in_blocks_and_one_of_rubin_in_groups_that_overlap() -> None:
    """Blocks of 16 MiB of float32 rows; groups of fields of 171 rows, 1,024 rows or a little more together."""
    des, rubin = SURVEYS
    assert reads(des) == (24, 1.0)
    groups, share = reads(rubin)
    assert groups == 4
    assert 1.1 < share < 1.25


def test_a_measured_gpu_is_named() -> None:
    row = costs({**FIGURES, "scorer_gpu": {"images_per_s": 100_000, "device": "X1"}}, SMALL)
    assert row["GPU-hours"] == "2.8 (X1)"


@pytest.mark.parametrize("lacking", ["cutouts_rates", "classify", "requests"])
def test_what_is_not_measured_is_said(lacking: str) -> None:
    figures = {name: values for name, values in FIGURES.items() if name != lacking}
    assert NOT_MEASURED in costs(figures, SURVEYS[0]).values()


def test_the_readme_shows_the_figures_that_are_committed() -> None:
    text = README.read_text()
    assert with_table(text, COMMAND, table(read_figures())) == text, COMMAND
