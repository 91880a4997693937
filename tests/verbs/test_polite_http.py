"""The client on a real server: rate, pauses, tries, deadlines, all by the server's clock or by what it was asked."""

from __future__ import annotations

import datetime
import email.utils
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepshadows.outcomes import Failure, InputError, StorageError
from deepshadows.verbs.polite_http import SILENT_LIMIT, FinalError, PoliteClient, retry_after_s
from tests.viewer_server import ViewerServer


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[ViewerServer]:
    with ViewerServer(files={"/file": b"content"}) as viewer:
        yield viewer


def client(**changes: Any) -> PoliteClient:
    return PoliteClient(**{"per_second": 100.0, "retries": 3, "timeout_s": 5.0, "backoff_s": 0.01, **changes})


def file_of(server: ViewerServer) -> str:
    return server.url.removesuffix("/viewer") + "/file"


def anything(_body: bytes, _content_type: str) -> None:
    """Every answer is good."""


def test_the_rate_holds_over_all_threads(server: ViewerServer) -> None:
    asking = client(per_second=40.0)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: asking.ask(file_of(server), anything), range(20)))
    times = sorted(entry.at for entry in server.received)
    assert len(times) == 20
    assert times[-1] - times[0] >= 19 / 40 - 0.05


def test_failed_requests_are_tried_again(server: ViewerServer) -> None:
    server.behaviour["/file"] = ["500", "502", "good"]
    asked = client().ask(file_of(server), anything)
    assert asked is not None
    assert asked.body == b"content"
    assert [(entry.status, entry.reason is None) for entry in asked.tries] == [(500, False), (502, False), (200, True)]


def test_tries_come_to_an_end(server: ViewerServer) -> None:
    server.behaviour["/file"] = ["500"]
    asked = client(retries=2).ask(file_of(server), anything)
    assert asked is not None
    assert asked.body is None
    assert len(asked.tries) == len(server.received) == 3
    assert "HTTP 500" in (asked.tries[-1].reason or "")


def test_what_is_not_there_is_asked_for_once(server: ViewerServer) -> None:
    asked = client().ask(server.url.removesuffix("/viewer") + "/other", anything)
    assert asked is not None
    assert [entry.status for entry in asked.tries] == [404]


def test_pauses_between_tries_grow(server: ViewerServer) -> None:
    server.behaviour["/file"] = ["500", "500", "500", "good"]
    client(backoff_s=0.1).ask(file_of(server), anything)
    times = [entry.at for entry in server.received]
    assert times[1] - times[0] >= 0.05
    assert times[3] - times[2] >= 0.2


@pytest.mark.parametrize("status", ["429", "503"])
def test_everybody_pauses_when_the_server_asks_for_it(server: ViewerServer, status: str) -> None:
    server.behaviour["/file"] = [status, "good"]
    asking = client(per_second=4.0)
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: asking.ask(file_of(server), anything), range(4)))
    assert all(asked is not None and asked.body == b"content" for asked in done)
    first, *others = (entry.at for entry in server.received)
    late = [at for at in others if at - first >= 0.95]
    assert len(others) == 4
    assert len(late) >= 3, "one request may have been sent before the answer was there"


def test_a_server_that_asks_for_too_long_a_pause_ends_the_work(server: ViewerServer) -> None:
    server.behaviour["/file"], server.retry_after = ["429"], "3600"
    with pytest.raises(Failure, match="3600 s"):
        client().ask(file_of(server), anything)


@pytest.mark.parametrize("told", ["held", "trickle"])
def test_a_slow_answer_meets_the_deadline(server: ViewerServer, told: str) -> None:
    server.behaviour["30.0"] = [told]
    started = time.monotonic()
    asked = client(retries=0, timeout_s=0.5).ask(
        f"{server.url}/jpeg-cutout?ra=30.0&dec=0.0&layer=des-dr1&size=64", anything
    )
    assert time.monotonic() - started < 5
    assert asked is not None
    assert "within 0.5 s" in (asked.tries[-1].reason or "")


def test_a_cut_off_body_is_no_answer(server: ViewerServer) -> None:
    server.behaviour["30.0"] = ["cut off", "good"]
    asked = client().ask(f"{server.url}/jpeg-cutout?ra=30.0&dec=0.0&layer=des-dr1&size=64", anything)
    assert asked is not None
    assert len(asked.tries) == 2
    assert "cut off" in (asked.tries[0].reason or "")
    assert asked.body is not None


def test_the_caller_says_what_is_good(server: ViewerServer) -> None:
    verdicts = iter([InputError("odd"), FinalError("never")])

    def check(body: bytes, content_type: str) -> None:
        assert (body, content_type) == (b"content", "text/plain")
        raise next(verdicts)

    asked = client().ask(file_of(server), check)
    assert asked is not None
    assert [entry.reason for entry in asked.tries] == ["odd", "never"]
    assert asked.body is None


def test_a_server_that_is_not_there_ends_the_work() -> None:
    with socket.socket() as taken:  # bound, so that nobody else comes there, and not listening
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        asking = client(retries=0)
        for _ in range(SILENT_LIMIT - 1):
            asked = asking.ask(url, anything)
            assert asked is not None
            assert asked.tries[-1].status is None
        with pytest.raises(StorageError, match="no answer for 8 objects in a row"):
            asking.ask(url, anything)


def test_stopping_ends_the_waiting(server: ViewerServer) -> None:
    came = threading.Event()

    def check(_body: bytes, _content_type: str) -> None:
        came.set()
        raise InputError("again")

    asking = client(backoff_s=60.0)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(asking.ask, file_of(server), check)
        assert came.wait(5)
        asking.stop()
        assert future.result(timeout=5) is None
    assert len(server.received) == 1


@given(st.integers(0, 10**6))
def test_retry_after_in_seconds(seconds: int) -> None:
    assert retry_after_s(str(seconds)) == seconds


@given(st.integers(2, 10**6))
def test_retry_after_as_a_date(seconds: int) -> None:
    then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    found = retry_after_s(email.utils.format_datetime(then, usegmt=True))
    assert found is not None
    assert seconds - 2 <= found <= seconds


@given(st.text(max_size=40))
def test_a_retry_after_that_says_nothing_is_no_pause_or_a_time(text: str) -> None:
    found = retry_after_s(text)
    assert found is None or found >= 0
