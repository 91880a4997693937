"""Trainings on several nodes, their state on S3, whose workers and nodes die."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from deepshadows import storage
from deepshadows.model import checkpoint as checkpoints
from deepshadows.model.card import Card, read_card
from deepshadows.outcomes import ExitCode
from tests.faults.place import Driver, Place
from tests.model.blobs import blob_cutouts, seasoned_net
from tests.verbs.test_train import write_inputs

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]
Trial = Callable[[str], None]
EPOCHS, WORKERS = 5, 3
SAVED = "checkpoint_manager_snapshot.json"
"""Ray Train writes this when an epoch is saved; the next one has begun then."""


class Trainings:
    """One training, as often as wanted, each with an output of its own below `folder`."""

    def __init__(self, place: Place, folder: str, verb: str) -> None:
        self.place, self.folder, self.verb = place, folder, verb
        cutouts = blob_cutouts(600)
        wrong = np.random.default_rng(3).random(600) < 0.15  # so that there is something to be unsure about
        inputs = write_inputs(folder, replace(cutouts, label=np.where(wrong, 1 - cutouts.label, cutouts.label)), EPOCHS)
        self.words = ["--cutouts", inputs["cutouts"], "--recipe", inputs["recipe"]]
        if verb == "finetune":
            checkpoints.save(f"{folder}/start", seasoned_net(), Card(name="start"))
            self.words += ["--from", f"{folder}/start"]

    def begin(self, output: str, *flags: str) -> Driver:
        words = [self.verb, *self.words, "--output", f"{self.folder}/{output}", "--workers", str(WORKERS), *flags]
        return Driver([*words, "--address", self.place.nodes.address], self.place.nodes.environment)


@pytest.fixture(scope="module", params=["train", "finetune"])
def trainings(request: pytest.FixtureRequest, shared_place: Place) -> Trainings:
    shared_place.restore()
    made = Trainings(shared_place, f"{shared_place.folder}/{request.param}", request.param)
    driver = made.begin("undisturbed")
    assert driver.end()["exit_code"] == ExitCode.DONE, driver.log
    assert epochs(driver) == [(number, WORKERS) for number in range(1, EPOCHS + 1)]
    return made


def epochs(driver: Driver) -> list[tuple[int, int]]:
    """Number of each epoch that the driver told of, and its workers."""
    lines = re.findall(r"^epoch (\d+)/.* images/s(?: with (\d+) workers)?$", driver.log, re.MULTILINE)
    return [(int(number), int(workers or 1)) for number, workers in lines]


def check(trainings: Trainings, output: str, record: dict[str, Any], driver: Driver) -> None:
    """It went on from its last epoch, to the end, and left nothing but a checkpoint."""
    assert record["exit_code"] == ExitCode.DONE, driver.log
    assert [number for number, _ in epochs(driver)] == list(range(1, EPOCHS + 1)), driver.log
    assert storage.list_objects(f"{trainings.folder}/{output}/training", (".json", ".safetensors")) == []


def assert_as_good(trainings: Trainings, output: str) -> None:
    """Not to the bit: who begins anew lays gradients into other buckets, and adds those of three in another order."""
    before, after = (read_card(f"{trainings.folder}/{name}").metrics for name in ("undisturbed", output))
    for measure in ("accuracy", "auc"):
        assert before[f"{measure}_lo"] <= after[measure] <= before[f"{measure}_hi"], (measure, before, after)


def test_a_worker_is_killed_in_mid_epoch(trainings: Trainings, place: Place, trial: Trial) -> None:
    """One of three training processes is killed (SIGKILL) in mid-epoch, twice."""
    driver = trainings.begin("killed")
    killed: list[int] = []

    def kill() -> None:
        worker = place.nodes.workers("RayTrainWorker")[-1]
        worker.kill()
        killed.append(worker.pid)

    gates = [place.road.at(nth, "PUT", SAVED, kill, answered=True) for nth in (1, 3)]
    record = driver.end()
    for gate in gates:
        gate.result(0)
    assert len(set(killed)) == 2
    check(trainings, "killed", record, driver)
    assert_as_good(trainings, "killed")
    for _ in killed:
        trial("it went on from its last epoch; accuracy and AUC within the interval of an undisturbed one")


def test_a_lost_node_is_waited_for(trainings: Trainings, place: Place, trial: Trial) -> None:
    """A node with training processes is lost, all of which are wanted; another comes when the training waits."""
    driver = trainings.begin("waiting")
    gate = place.road.at(2, "PUT", SAVED, lambda: place.nodes.ask("kill"), answered=True)
    driver.until(lambda: f"waiting for nodes with room for {WORKERS} workers" in driver.log, "it tells that it waits")
    gate.result(0)
    place.restore()
    check(trainings, "waiting", driver.end(), driver)
    assert_as_good(trainings, "waiting")
    trial("it said so, waited, and went on; accuracy and AUC within the interval of an undisturbed one")


def test_a_node_that_does_not_come_back_ends_the_wait(trainings: Trainings, place: Place, trial: Trial) -> None:
    """A node with training processes is lost, all of which are wanted, and no other comes."""
    driver = trainings.begin("ended", "--no-progress-s", "30")
    gate = place.road.at(2, "PUT", SAVED, lambda: place.nodes.ask("kill"), answered=True)
    record = driver.end()
    gate.result(0)
    assert record["exit_code"] == ExitCode.FAILED, driver.log
    assert f"there was no room for {WORKERS} workers" in record["error"]
    place.restore()
    again = trainings.begin("ended")
    record = again.end()
    assert record["exit_code"] == ExitCode.DONE, again.log
    assert epochs(again)[0][0] > 1, again.log
    trial("it ended with code 1 and a message; the same command went on")


def test_the_cluster_shrinks(trainings: Trainings, place: Place, trial: Trial) -> None:
    """A node with training processes is lost in mid-epoch, and no other comes."""
    driver = trainings.begin("shrunk", "--min-workers", "1")
    gate = place.road.at(2, "PUT", SAVED, lambda: place.nodes.ask("kill"), answered=True)
    record = driver.end()
    gate.result(0)
    check(trainings, "shrunk", record, driver)
    workers = [count for _, count in epochs(driver)]
    assert workers[:2] == [WORKERS] * 2
    assert workers[-1] == 2
    assert_as_good(trainings, "shrunk")
    trial("it went on with two from its last epoch; accuracy and AUC within the interval of an undisturbed one")
