"""The lease: one driver at a time, a dead one replaced, a fenced one told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from deepshadows import storage
from deepshadows.outcomes import HeldError, StorageError
from deepshadows.run.lease import Lease, check_holder

HOLD = """
import sys, time
from deepshadows.run.lease import Lease
with Lease(sys.argv[1]):
    print("held", flush=True)
    time.sleep(120)
"""


def test_a_released_lease_is_free_again(place: str) -> None:
    with Lease(place) as first:
        first.check()
    with Lease(place) as second:
        second.check()
    record = json.loads(storage.read(storage.join(place, "lease.json")))
    assert record["generation"] == 1
    assert record["released"]


def test_a_second_driver_is_turned_away_while_the_first_lives(place: str) -> None:
    with Lease(place, ttl_s=3) as first:
        with pytest.raises(HeldError, match="another driver"), Lease(place, ttl_s=3):
            pass
        first.check()


def test_the_lease_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    started = time.monotonic()
    with Lease(str(tmp_path)) as lease:
        lease.check()
    assert time.monotonic() - started < 5


def test_a_driver_on_another_host_is_dead_when_its_heart_stands_still(place: str) -> None:
    stranger = {
        "token": "x",
        "generation": 4,
        "beat": 1,
        "host": "elsewhere",
        "pid": 1,
        "started": "1",
        "released": False,
    }
    storage.write(storage.join(place, "lease.json"), json.dumps(stranger).encode())
    started = time.monotonic()
    with Lease(place, ttl_s=1.5):
        assert time.monotonic() - started >= 1.5
        assert json.loads(storage.read(storage.join(place, "lease.json")))["generation"] == 5


def test_a_fenced_driver_learns_it(place: str) -> None:
    with Lease(place, ttl_s=0.6) as paused:
        url = storage.join(place, "lease.json")
        storage.write(url, json.dumps({"token": "usurper", "generation": 9, "beat": 0}).encode())
        deadline = time.monotonic() + 20
        with pytest.raises(HeldError, match="took this run over"):
            while time.monotonic() < deadline:
                paused.check()
                time.sleep(0.02)
    assert json.loads(storage.read(url))["token"] == "usurper"


def test_a_driver_that_was_paused_learns_it_before_it_commits(place: str) -> None:
    """Its heart beats only once in ten seconds: `confirm` does not wait for that."""
    with Lease(place, ttl_s=60) as paused:
        url = storage.join(place, "lease.json")
        storage.write(url, json.dumps({"token": "usurper", "generation": 9, "beat": 0}).encode())
        paused.check()
        with pytest.raises(HeldError, match="took this run over"):
            paused.confirm()
    assert json.loads(storage.read(url))["token"] == "usurper"


def test_a_lease_that_was_removed_is_another_drivers(place: str) -> None:
    """Who takes a training over removes it at the end, with the folder that it lies in."""
    url = storage.join(place, "lease.json")
    with Lease(place, ttl_s=60) as paused:
        storage.delete(url)
        with pytest.raises(HeldError, match="took this run over"):
            paused.confirm()
    assert not storage.exists(url)


def test_a_driver_whose_wait_ends_with_the_removal_is_told(place: str) -> None:
    url = storage.join(place, "lease.json")
    stranger = {"token": "x", "generation": 4, "beat": 1}
    storage.write(url, json.dumps(stranger).encode())
    remover = threading.Timer(1.0, storage.delete, [url])
    remover.start()
    with pytest.raises(HeldError, match="another driver has just finished"), Lease(place, ttl_s=20):
        pass
    remover.join()
    assert not storage.exists(url)


def test_workers_ask_whether_their_driver_holds_the_lease(place: str) -> None:
    with Lease(place) as lease:
        check_holder(place, lease.token)
        with pytest.raises(HeldError, match="took this run over"):
            check_holder(place, "another")
    storage.delete(storage.join(place, "lease.json"))
    with pytest.raises(HeldError, match="took this run over"):
        check_holder(place, lease.token)


@pytest.mark.parametrize("body", [b"[]", b"nonsense", b'{"pid": "x"}', b'{"generation": null}'])
def test_a_damaged_lease_is_named(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "lease.json").write_bytes(body)
    with pytest.raises(StorageError, match=r"lease\.json: damaged lease"), Lease(str(tmp_path)):
        pass
