"""A store that dies, fills up, changes or turns keys away, and a bad road to it."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deepshadows import storage
from deepshadows.outcomes import ExitCode, ForbiddenError, StorageError
from deepshadows.run.manifest import quarantined_units, read_manifest
from deepshadows.sky.shards import split, write_shard
from tests.faults.place import ROWS, UNIT_ROWS, UNITS, Place, wait_until
from tests.faults.proxy import KINDS
from tests.seaweed import SeaweedFS
from tests.sky.test_shards import cutouts_of

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]
Trial = Callable[[str], None]


@pytest.mark.parametrize("unit", [1, 7, 14])
def test_the_store_is_killed_and_comes_back(place: Place, target: str, unit: int, trial: Trial) -> None:
    """The store is killed (SIGKILL) in mid-run, and started again when ten requests have failed."""
    driver = place.classify(target)
    gate = place.road.at(unit, "PUT", "/scores/", place.store.kill)
    driver.until(gate.done, f"unit {unit}")
    try:
        driver.until(lambda: place.road.counts["away"] >= 10, "ten failed requests")
    finally:
        place.store.start()
    place.check(target, driver.end(), driver.log)
    trial("the run went on")


def test_a_store_that_stays_away_ends_the_run_with_a_message(place: Place, target: str, trial: Trial) -> None:
    """The store is killed and stays away."""
    driver = place.classify(target)
    place.road.at(5, "PUT", "/scores/", place.store.kill)
    try:
        record = driver.end()
    finally:
        place.store.start()
    assert record["exit_code"] == ExitCode.FAILED, driver.log
    assert "run the same command again" in record["error"]
    place.finish(target)
    trial("the run ended with code 1 and a message; the same command went on")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_bad_road(place: Place, target: str, seed: int, trial: Trial) -> None:
    """Five answers in a hundred are 500, 503, 429, resets, lost, truncated or slow."""
    driver = place.classify(target)
    place.road.spoil(0.05, KINDS, seed)
    record = driver.end()
    assert place.road.spoiled >= 2
    place.check(target, record, driver.log)
    trial("the run went on")


def test_a_very_bad_road(place: Place, target: str, trial: Trial) -> None:
    """Thirty answers in a hundred are 500, 503, 429, resets, lost, truncated or slow."""
    driver = place.classify(target)
    place.road.spoil(0.3, KINDS, seed=5)
    record = driver.end()
    assert place.road.spoiled >= 10
    assert record["exit_code"] in (ExitCode.DONE, ExitCode.FAILED), driver.log
    if record["exit_code"] == ExitCode.DONE:
        place.check(target, record)
        trial("the run went on")
    else:
        assert "again" in record["error"]
        place.finish(target)
        trial("the run ended with code 1 and a message; the same command went on")


@pytest.mark.parametrize("kind", KINDS)
def test_one_kind_of_trouble(place: Place, target: str, kind: str, trial: Trial) -> None:
    """One answer in ten is spoiled, always in one way: each of the seven in turn."""
    driver = place.classify(target)
    place.road.spoil(0.1, (kind,), seed=1)
    record = driver.end()
    assert place.road.counts[kind] >= 3
    place.check(target, record, driver.log)
    trial("the run went on")


def test_a_shard_that_is_replaced_during_the_run_is_refused(place: Place, target: str, trial: Trial) -> None:
    """An input shard is replaced during the run; its etag tells."""
    url = f"{place.source}/{UNITS - 1:03d}.parquet"
    original = storage.read(url)
    driver = place.classify(target)
    replaced = place.road.at(
        1, "PUT", "/scores/", lambda: write_shard(url, cutouts_of(UNIT_ROWS, labelled=False, seed=99))
    )
    try:
        record = driver.end()
    finally:
        storage.write(url, original)
    replaced.result(0)
    assert record["exit_code"] == ExitCode.EXCEPTIONS, driver.log
    assert (record["rows_scored"], record["rows_quarantined"]) == (ROWS - UNIT_ROWS, UNIT_ROWS)
    (refused,) = quarantined_units(target, read_manifest(target))
    assert "changed since the run was planned" in refused.reason
    trial("its unit was quarantined (code 3), nothing of the new content came in")


def test_keys_are_revoked_and_given_back(place: Place, target: str, trial: Trial) -> None:
    """The store refuses the keys from mid-run on."""
    good = place.store.secret

    def accept(secret: str, then: Callable[[], bool]) -> None:
        identity = {"name": "dev", "credentials": [{"accessKey": place.store.key, "secretKey": secret}]}
        text = json.dumps({"identities": [{**identity, "actions": ["Admin"]}]})
        (place.store.folder / "s3.json").write_text(text)
        assert place.store.process is not None
        place.store.process.send_signal(signal.SIGHUP)  # it reads its keys anew
        wait_until(then, "the store takes its new keys", 20)

    def refused() -> bool:
        try:
            storage.stat(f"{place.source}/000.parquet")
        except ForbiddenError:
            return True
        return False

    driver = place.classify(target)
    gate = place.road.at(5, "PUT", "/scores/", lambda: accept("another-one", refused))
    try:
        record = driver.end()
    finally:
        accept(good, lambda: not refused())
    gate.result(0)
    assert record["exit_code"] == ExitCode.FAILED, driver.log
    assert "permission denied" in record["error"]
    assert good not in driver.log + json.dumps(record)
    assert storage.list_objects(f"{target}/quarantine") == []
    place.finish(target)
    trial("the run ended with code 1 and a message; the same command went on")


@pytest.fixture
def small_store(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[SeaweedFS]:
    """A store on a disk of 64 MB at the end of the road, and of this process."""
    store = SeaweedFS()
    try:
        mount(store, "size=64m")
    except (OSError, subprocess.CalledProcessError) as error:
        store.stop()
        pytest.skip(f"mounting a small disk needs privileges: {error}")
    before = place.road.target
    try:
        store.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        place.road.target = store.endpoint
        forget_clients()
        yield store
    finally:
        place.road.target = before
        forget_clients()
        store.kill()
        subprocess.run(["umount", str(store.folder / "data")], check=True)
        store.stop()


def mount(store: SeaweedFS, options: str) -> None:
    """Give the store a disk of its own, or that disk another size."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(store.folder / "data")]
    subprocess.run(command, check=True, capture_output=True)


def forget_clients() -> None:
    """The clients of this process are to find their store anew."""
    storage._s3.cache_clear()
    storage._arrow.cache_clear()


def takes_writes(bucket: str) -> bool:
    try:
        storage.write(f"{bucket}/probe", bytes(1000))
    except StorageError:
        return False
    return True


def test_a_full_disk(place: Place, small_store: SeaweedFS, checkpoint: str, trial: Trial) -> None:
    """The disk of the store fills up in mid-run, and is given room again."""
    bucket = small_store.create_bucket("faults")
    for number, part in enumerate(split(cutouts_of(ROWS, labelled=False), UNIT_ROWS)):
        write_shard(f"{bucket}/in/{number:03d}.parquet", part)
    for file in Path(checkpoint).iterdir():
        storage.write(f"{bucket}/network/{file.name}", file.read_bytes())
    flags = ["--input", f"{bucket}/in", "--checkpoint", f"{bucket}/network"]

    def fill() -> None:
        size = 4 << 20
        for number in itertools.count():
            try:
                storage.write(f"{bucket}/ballast/{number}", bytes(size))
            except StorageError:
                size //= 64
                if size < 1000:
                    return

    driver = place.classify(f"{bucket}/run", *flags)
    gate = place.road.at(5, "PUT", "/scores/", fill)
    record = driver.end()
    gate.result(0)
    assert record["exit_code"] == ExitCode.FAILED, driver.log
    assert "run the same command again" in record["error"]
    assert not storage.exists(f"{bucket}/run/manifest.json")
    mount(small_store, "remount,size=256m")
    wait_until(lambda: takes_writes(bucket), "the store, which looks at its disk now and then, takes writes again")
    again = place.classify(f"{bucket}/run", *flags)
    place.check(f"{bucket}/run", again.end(), again.log)
    trial("the run ended with code 1 and a message; the same command went on")
