"""Several faults at once, on a Ray of two worker nodes: `pytest -n 0 -m faults tests/faults/test_short.py`."""

from __future__ import annotations

import pytest

from deepshadows.outcomes import ExitCode
from tests.faults.conftest import ROWS, Place, catalogue
from tests.faults.proxy import KINDS


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_bad_road_to_the_store_a_killed_scorer_and_a_lost_node_change_nothing(place: Place, target: str) -> None:
    """Five answers in a hundred are errors, resets, lost, slow or truncated; a scorer is killed, then a node goes."""
    place.road.begin(0.05, KINDS, seed=1)
    driver = place.classify(target)
    driver.until(3)
    scorers = place.nodes.scorers()
    assert scorers
    scorers[0].kill()
    driver.until(8)
    place.nodes.ask("kill")
    record = driver.end()
    assert record["exit_code"] == ExitCode.DONE, driver.log
    assert (record["rows_scored"], record["units_quarantined"]) == (ROWS, 0)
    assert sum(place.road.counts.values()) - place.road.counts["good"] >= 3
    assert catalogue(target).equals(place.undisturbed)
