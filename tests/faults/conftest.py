"""The place of the fault tests, and what came of each trial, for the table in the README."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.faults.place import Place, place_on
from tests.seaweed import SeaweedFS
from tests.verbs.conftest import checkpoint  # noqa: F401 -- the fixture


@pytest.fixture(scope="package")
def shared_place(object_store: SeaweedFS, session_bucket: str, checkpoint: str) -> Iterator[Place]:  # noqa: F811
    with place_on(object_store, f"{session_bucket}/faults-{uuid.uuid4().hex}", checkpoint) as made:
        yield made


@pytest.fixture
def place(shared_place: Place) -> Iterator[Place]:
    """The place with two nodes; the road to its store is good again after each test."""
    shared_place.restore()
    yield shared_place
    shared_place.road.be_good()


@pytest.fixture
def target(place: Place, request: pytest.FixtureRequest) -> str:
    """A run directory of the test's own."""
    name = request.node.name.replace("[", "-").rstrip("]")
    return f"{place.folder}/runs/{name}"


@pytest.fixture
def trial(
    request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> Iterator[Callable[[str], None]]:
    """`trial(outcome)` once for each fault that was inflicted; `tests.faults.table` reads them from the JUnit file."""
    outcomes: Counter[str] = Counter()

    def count(outcome: str) -> None:
        outcomes[outcome] += 1

    yield count
    record_property("fault", request.function.__doc__.split("\n")[0].rstrip("."))
    for outcome, times in outcomes.items():
        record_property(f"outcome: {outcome}", times)
