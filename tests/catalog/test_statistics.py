"""What a unit says of its rows: counts that add up, by hand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from deepshadows.catalog.statistics import BINS, LOG_ODDS_EDGES, NO_REGION, REGION_ORDER, unit_statistics
from deepshadows.run.scores import score_table
from deepshadows.schema import Flag
from tests.catalog.finished_runs import rows


def test_a_unit_counts_its_rows_once() -> None:
    flags = [0, Flag.NO_IMAGE.bit, Flag.OUT_OF_DOMAIN.bit, 0]
    p = np.array([0.0, 0.5, 0.5, 1.0], np.float32)
    unknown = np.full(4, np.nan, np.float32)
    table = score_table(
        pa.array([1, 2, 3, 4]), np.full(4, 30.0), np.full(4, -30.0), p, p, np.array(flags, np.int32),
        unit="u", run="r", p_lsbg_err=unknown,
    )  # fmt: skip
    found = unit_statistics(table, np.array([[0.0], [np.e - 1], [0.0]], np.float32))
    assert (found.rows, found.unscored, found.out_of_domain) == (4, 1, 1)
    assert sum(found.scores) == 3
    assert [found.scores[place] for place in (0, int(np.searchsorted(LOG_ODDS_EDGES, 0.0)), BINS - 1)] == [1, 1, 1]
    assert np.isclose(found.mean, 1 / 3).all() and np.isclose(found.spread, np.sqrt(2) / 3).all()
    assert 0 <= found.region < 12 * 4**REGION_ORDER


def test_a_unit_without_a_place_or_a_domain() -> None:
    found = unit_statistics(rows([1], [np.nan], [np.nan], [Flag.NO_POSITION.bit]), np.empty((1, 0), np.float32))
    assert (found.region, found.mean, found.rows) == (NO_REGION, [], 1)
    assert unit_statistics(rows([], [], []), np.empty((0, 0), np.float32)).rows == 0
