"""Several hosts, one of which loses its network in mid-run."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator

import pytest

from deepshadows import storage
from tests.faults.hosts import PORT, Hosts, NoNamespacesError
from tests.faults.place import Driver, Place, catalogue, count_scores, wait_until
from tests.faults.proxy import Proxy

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]
Trial = Callable[[str], None]
SOON = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "2000"}
"""A host that does not answer is given up after some 10 s; Ray's own patience is 50 s."""


class Network:
    """Three hosts and their own road to the store."""

    def __init__(self, place: Place) -> None:
        self.place, self.hosts = place, Hosts(3)
        self.road = Proxy(place.store.endpoint, host=self.hosts.gateway)
        self.environment = {
            **os.environ, **SOON, "AWS_ENDPOINT_URL": self.road.endpoint, "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex,
        }  # fmt: skip
        self.hosts.start_ray(self.environment, cpus=2)

    def classify(self, target: str) -> Driver:
        words = [*self.place.words(target), "--address", f"{self.hosts.address(0)}:{PORT}"]
        return Driver(words, self.environment, before=self.hosts.on_head())

    def stop(self) -> None:
        self.hosts.stop()
        self.road.stop()


@pytest.fixture(scope="module")
def network(shared_place: Place) -> Iterator[Network]:
    try:
        made = Network(shared_place)
    except NoNamespacesError as error:
        pytest.skip(f"needs the privilege to make network namespaces: {error}")
    yield made
    made.stop()


def test_a_host_is_cut_off_for_a_moment(network: Network, place: Place, target: str, trial: Trial) -> None:
    """One of two hosts loses its network for the time of five units."""
    driver = network.classify(target)
    gate = network.road.at(4, "PUT", "/scores/", lambda: network.hosts.cut(1))
    driver.until(gate.done, "four units")
    gate.result(0)
    committed = count_scores(target)
    driver.until(lambda: count_scores(target) >= committed + 5, "five units more")
    network.hosts.heal(1)
    place.check(target, driver.end(), driver.log)
    trial("the run went on")


def test_a_host_is_cut_off_for_good(network: Network, place: Place, target: str, trial: Trial) -> None:
    """One of two hosts loses its network until the run is over."""
    driver = network.classify(target)
    gate = network.road.at(4, "PUT", "/scores/", lambda: network.hosts.cut(1))
    try:
        place.check(target, driver.end(), driver.log)
        gate.result(0)
        before = {entry.url: entry.etag for entry in storage.list_objects(target)}
    finally:
        network.hosts.heal(1)
    wait_until(lambda: network.hosts.nodes[1].poll() is not None, "the host that was given up ends its Ray")
    assert {entry.url: entry.etag for entry in storage.list_objects(target)} == before
    assert catalogue(target).equals(place.undisturbed)
    trial("the other host did its work; what it still had in hand changed nothing")
