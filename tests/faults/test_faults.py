"""Faults, one by one and over and over, and always the catalogue of a run that nobody disturbed.

Half an hour: `pytest -n 0 -m faults`. A full disk and a publish killed at its last step are in `tests/verbs`.
"""

from __future__ import annotations

import json
import random
import signal
import time

import psutil
import pytest

from deepshadows import storage
from deepshadows.catalog import collection
from deepshadows.outcomes import ExitCode
from deepshadows.run.lease import TTL_S
from deepshadows.run.manifest import quarantined_units, read_manifest
from deepshadows.sky.shards import write_shard
from tests.end_to_end.ray_head import RayHead
from tests.faults.conftest import BUCKET, ROWS, UNIT_ROWS, UNITS, Driver, Place, catalogue, count_scores
from tests.faults.proxy import KINDS
from tests.sky.test_shards import cutouts_of

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


def test_scorers_are_killed_again_and_again(place: Place, target: str) -> None:
    driver = place.classify(target)
    for units in (2, 6, 10, 14, 18):
        driver.until(units)
        for scorer in place.nodes.scorers()[:1]:
            scorer.kill()
    record = driver.end()
    assert record["exit_code"] == ExitCode.DONE, driver.log
    assert catalogue(target).equals(place.undisturbed)


@pytest.mark.parametrize("when", [1, 12])
def test_a_node_goes_without_grace(place: Place, target: str, when: int) -> None:
    driver = place.classify(target)
    driver.until(when)
    place.nodes.ask("kill")
    record = driver.end()
    place.nodes.ask("add")
    assert record["exit_code"] == ExitCode.DONE, driver.log
    assert catalogue(target).equals(place.undisturbed)


def test_the_driver_is_killed_at_ten_random_moments(place: Place, target: str) -> None:
    moments = random.Random(7)
    for _ in range(10):
        driver = place.classify(target)
        before = count_scores(target)
        if moments.random() < 0.5:
            time.sleep(moments.uniform(0, 12))  # anywhere: while it imports, plans, joins Ray
        elif before < UNITS - 4:
            driver.until(before + moments.randint(1, 3))
        driver.kill()
        assert count_scores(target) >= before
        assert not storage.exists(f"{target}/manifest.json") or count_scores(target) == UNITS
    place.finish(target)


def test_the_store_is_killed_and_comes_back(place: Place, target: str) -> None:
    """The clients try again for a while; a run that gave up goes on by the same command."""
    driver = place.classify(target)
    driver.until(5)
    place.store.kill()
    time.sleep(8)
    place.store.start()
    record = driver.end()
    assert record["exit_code"] in (ExitCode.DONE, ExitCode.FAILED), driver.log
    assert record["exit_code"] == ExitCode.DONE or "run the same command again" in record["error"]
    place.finish(target)


def test_a_store_that_stays_away_ends_the_run_with_a_message(place: Place, target: str) -> None:
    driver = place.classify(target)
    driver.until(5)
    place.store.kill()
    began = time.monotonic()
    record = driver.end(400)
    assert record["exit_code"] == ExitCode.FAILED, driver.log
    assert time.monotonic() - began < 400
    assert "again" in record["error"]
    place.store.start()
    place.finish(target)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("share", [0.05, 0.2])
def test_a_bad_road(place: Place, target: str, share: float, seed: int) -> None:
    """At 5 % it is to go through; at 20 % it may give up with a message, and then goes on."""
    place.road.begin(share, KINDS, seed)
    try:
        driver = place.classify(target)
        record = driver.end(400)
    finally:
        place.road.begin(0.0, KINDS, seed)
    if share == 0.05:
        assert record["exit_code"] == ExitCode.DONE, driver.log
    assert record["exit_code"] in (ExitCode.DONE, ExitCode.FAILED), driver.log
    assert record.get("units_quarantined", 0) == 0
    place.finish(target)


@pytest.mark.parametrize("kind", KINDS)
def test_one_kind_of_trouble_on_the_road(place: Place, target: str, kind: str) -> None:
    place.road.begin(0.1, (kind,), 1)
    try:
        driver = place.classify(target)
        record = driver.end(400)
    finally:
        place.road.begin(0.0, KINDS, 1)
    assert place.road.counts[kind] > 3
    assert record["exit_code"] in (ExitCode.DONE, ExitCode.FAILED), driver.log
    assert record["exit_code"] == ExitCode.DONE or "again" in record["error"]
    place.finish(target)


def test_of_two_drivers_one_works_and_the_other_is_told(place: Place, target: str) -> None:
    drivers = [place.classify(target), place.classify(target)]
    records = [driver.end() for driver in drivers]
    assert sorted(record["exit_code"] for record in records) == [ExitCode.DONE, ExitCode.HELD], [d.log for d in drivers]
    assert catalogue(target).equals(place.undisturbed)


def test_a_driver_paused_past_its_lease_cannot_commit(place: Place, target: str) -> None:
    place.nodes.ask("add")  # the scorers of the paused driver keep their CPUs
    first = place.classify(target)
    first.until(5)
    first.process.send_signal(signal.SIGSTOP)
    second = place.classify(target)
    done = second.end(300)
    assert done["exit_code"] == ExitCode.DONE, second.log
    assert done["seconds"] > TTL_S
    committed = storage.stat(f"{target}/manifest.json").etag
    first.process.send_signal(signal.SIGCONT)
    fenced = first.end()
    place.nodes.ask("kill")
    assert fenced["exit_code"] == ExitCode.HELD, first.log
    assert storage.stat(f"{target}/manifest.json").etag == committed
    assert catalogue(target).equals(place.undisturbed)


def test_a_shard_that_is_replaced_during_the_run_is_refused(place: Place, target: str) -> None:
    """What was scored of it before stays what it was; nothing of the new content comes in."""
    url = f"{BUCKET}/in/{UNITS - 1:03d}.parquet"
    original = storage.read(url)
    driver = place.classify(target)
    try:
        driver.until(1)
        write_shard(url, cutouts_of(UNIT_ROWS, labelled=False, seed=99))
        record = driver.end()
    finally:
        storage.write(url, original)
    assert record["exit_code"] == ExitCode.EXCEPTIONS, driver.log
    assert (record["rows_scored"], record["rows_quarantined"]) == (ROWS - UNIT_ROWS, UNIT_ROWS)
    (refused,) = quarantined_units(target, read_manifest(target))
    assert "changed since the run was planned" in refused.reason


def test_credentials_are_revoked_and_given_back(place: Place, target: str) -> None:
    def take(secret: str) -> None:
        place.store.kill()
        place.store.secret = secret
        identity = {"name": "dev", "credentials": [{"accessKey": place.store.key, "secretKey": secret}]}
        text = json.dumps({"identities": [{**identity, "actions": ["Admin"]}]})
        (place.store.folder / "s3.json").write_text(text)
        place.store.start()

    good = place.store.secret
    driver = place.classify(target)
    driver.until(5)
    take("another-one")
    record = driver.end(400)
    take(good)
    assert record["exit_code"] == ExitCode.FAILED, driver.log
    assert "permission denied" in record["error"]
    assert good not in driver.log + json.dumps(record)
    assert storage.list_objects(f"{target}/quarantine") == []
    place.finish(target)


def test_the_head_is_lost_and_the_job_submitted_again(place: Place, target: str) -> None:
    """The same submit on a new head, as a new cluster would get it."""
    words = ["submit", "classify", "--input", place.source, "--checkpoint", place.network]
    words += ["--output", target, "--precision", "exact", "--unit-rows", str(UNIT_ROWS), "--threads", "1", "--json"]
    environment = place.nodes.environment
    head = RayHead(environment)
    try:
        driver = Driver([*words, "--address", head.address], {**environment, **head.access}, target)
        driver.until(5)
        for process in [*psutil.Process(head.process.pid).children(recursive=True), head.process]:
            process.kill()
        lost = driver.end()
    finally:
        head.stop()
    assert lost["exit_code"] == ExitCode.FAILED
    kept = count_scores(target)
    assert 5 <= kept < UNITS
    head = RayHead(environment)
    try:
        again = Driver([*words, "--address", head.address], {**environment, **head.access}, target)
        record = again.end()
    finally:
        head.stop()
    assert (record["exit_code"], record["rows_scored"]) == (ExitCode.DONE, ROWS), again.log
    assert catalogue(target).equals(place.undisturbed)


def test_publish_is_killed_at_random_moments(place: Place) -> None:
    """Readers see a whole version at every moment, and the last one holds every row."""
    cat = f"{BUCKET}/cat"

    def publish() -> Driver:
        words = ["publish", "--run", f"{BUCKET}/undisturbed", "--catalog", cat, "--json"]
        words += ["--address", place.nodes.address]
        return Driver(words, place.nodes.environment, cat)

    assert publish().end()["rows_published"] == ROWS
    moments = random.Random(11)
    for _ in range(5):
        driver = publish()
        time.sleep(moments.uniform(2, 9))
        driver.kill()
        assert collection.read_current(cat).num_rows == ROWS
    assert publish().end()["exit_code"] == ExitCode.DONE
    published = collection.read_current(cat).sort_by("object_id")
    assert published.select(place.undisturbed.column_names).equals(place.undisturbed)
