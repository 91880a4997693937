"""Several faults at once: one test for every day. All the others: `pytest -n 0 -m faults`."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from deepshadows.outcomes import ExitCode
from tests.faults.place import LIMIT_S, UNITS, Place, catalogue
from tests.faults.proxy import KINDS

pytestmark = pytest.mark.timeout(300)


@pytest.mark.faults
def test_of_two_drivers_that_take_up_the_run_of_a_killed_one_one_finishes(
    place: Place, target: str, trial: Callable[[str], None]
) -> None:
    """A driver is killed; two take its run up at the same time."""
    first = place.classify(target)
    place.road.at(random.Random(3).randint(1, UNITS // 2), "PUT", "/scores/", first.kill)
    first.process.wait(LIMIT_S)
    drivers = [place.classify(target), place.classify(target)]
    records = [driver.end() for driver in drivers]
    assert sorted(record["exit_code"] for record in records) == [ExitCode.DONE, ExitCode.HELD], [d.log for d in drivers]
    assert catalogue(target).equals(place.undisturbed)
    trial("one finished it, the other ended with code 4")


def test_a_bad_road_a_killed_scorer_and_a_lost_node_change_nothing(
    place: Place, target: str, trial: Callable[[str], None]
) -> None:
    """At once: five bad answers in a hundred, a killed scorer, a lost node."""
    place.road.spoil(0.05, KINDS, seed=1)
    driver = place.classify(target)
    gates = [
        place.road.at(3, "PUT", "/scores/", lambda: place.nodes.workers("UnitScorer")[0].kill()),
        place.road.at(8, "PUT", "/scores/", lambda: place.nodes.ask("kill")),
    ]
    place.check(target, driver.end(), driver.log)
    for gate in gates:
        gate.result(0)
    assert place.road.spoiled >= 2
    trial("the run went on")
