"""Asking a public server politely: a limit on the rate, pauses when it asks for them, tries that wait longer each time.

Knows HTTP only; what a good answer is, the caller says. Imports no Ray.
"""

from __future__ import annotations

import datetime
import email.utils
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import requests
from urllib3.exceptions import HTTPError, ReadTimeoutError

from deepshadows import __version__
from deepshadows.outcomes import Failure, InputError, StorageError

LONGEST_PAUSE_S = 60.0
LONGEST_RETRY_AFTER_S = 600.0
"""A server that asks for a longer pause than this wants us to come back another day."""
SILENT_LIMIT = 8
"""So many objects in a row without any answer: the server or the network is down, not the objects bad."""
LARGEST_BODY_BYTES = 256 * 1024**2
_CHUNK_BYTES = 64 * 1024
_TRY_AGAIN = frozenset((408, 425, 429, 500, 502, 503, 504))
_ASKS_FOR_PAUSE = frozenset((429, 503))


class FinalError(InputError):
    """The answer is no use and will not be another time."""


class _StoppedError(Exception):
    """Somebody ended the work."""


@dataclass(frozen=True, kw_only=True)
class Try:
    """One request and how it ended; `reason` is None where the answer was good."""

    at: datetime.datetime
    url: str
    status: int | None
    size_bytes: int
    seconds: float
    reason: str | None


@dataclass(frozen=True)
class Asked:
    """All tries for one object, and the body of the last if it was good."""

    tries: tuple[Try, ...]
    body: bytes | None


@dataclass
class _Answer:
    url: str
    status: int | None = None
    body: bytes = b""
    content_type: str = ""
    retry_after_s: float | None = None
    problem: str | None = None
    final: bool = False


Check = Callable[[bytes, str], None]
"""Takes body and content type; raises `InputError` where another try may help, `FinalError` where none will."""


@dataclass(kw_only=True)
class PoliteClient:
    """Requests to one server from several threads, all under one limit.

    Attributes
    ----------
    per_second : float
        Most requests started in a second, over all threads and tries.
    retries : int
        Further tries of one object.
    timeout_s : float
        Time for one whole answer, from the first byte sent to the last received.
    backoff_s : float
        Pause before the first further try; it doubles with each, up to a minute, times a random 0.5 to 1.5.
    """

    per_second: float
    retries: int
    timeout_s: float
    backoff_s: float
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _local: threading.local = field(default_factory=threading.local)
    _next: float = 0.0
    _held_until: float = 0.0
    _silent: int = 0

    def stop(self) -> None:
        """End all waiting; no further request is sent."""
        self._stopped.set()

    def ask(self, url: str, check: Check) -> Asked | None:
        """Ask until the answer is good or there is no point in asking; None where the work was stopped meanwhile.

        Raises
        ------
        StorageError
            No answer at all for many objects in a row.
        Failure
            The server asks for a pause of more than ten minutes.
        """
        tries: list[Try] = []
        try:
            while True:
                self._wait_for_turn()
                at, started = datetime.datetime.now(datetime.UTC), time.monotonic()
                answer = self._get(url)
                if answer.problem is None:
                    self._check(answer, check)
                tries.append(
                    Try(
                        at=at,
                        url=answer.url,
                        status=answer.status,
                        size_bytes=len(answer.body),
                        seconds=time.monotonic() - started,
                        reason=answer.problem,
                    )
                )
                if answer.retry_after_s is not None:
                    self._hold(answer.retry_after_s, answer.url)
                if answer.problem is None or answer.final or len(tries) > self.retries:
                    break
                self._pause(min(self.backoff_s * 2.0 ** (len(tries) - 1), LONGEST_PAUSE_S) * random.uniform(0.5, 1.5))
        except _StoppedError:
            return None
        self._count_silence(answer)
        return Asked(tuple(tries), answer.body if answer.problem is None else None)

    def _check(self, answer: _Answer, check: Check) -> None:
        try:
            check(answer.body, answer.content_type)
        except FinalError as error:
            answer.problem, answer.final = str(error), True
        except InputError as error:
            answer.problem = str(error)

    def _pause(self, seconds: float) -> None:
        if self._stopped.wait(max(seconds, 0.0)):
            raise _StoppedError

    def _wait_for_turn(self) -> None:
        """One thread at a time waits here, so that starts are at least 1 / per_second apart."""
        with self._turn:
            while (left := max(self._next, self._held_until) - time.monotonic()) > 0:
                self._pause(min(left, 1.0))  # a pause that begins meanwhile is seen
            self._pause(0)
            self._next = time.monotonic() + 1 / self.per_second

    def _hold(self, seconds: float, url: str) -> None:
        """The server wants to be left alone: nobody asks before that time."""
        if seconds > LONGEST_RETRY_AFTER_S:
            raise Failure(f"{url}: the server asks for a pause of {seconds:.0f} s; run the same command again after it")
        with self._guard:
            self._held_until = max(self._held_until, time.monotonic() + seconds)

    def _count_silence(self, answer: _Answer) -> None:
        with self._guard:
            self._silent = self._silent + 1 if answer.status is None else 0
            if self._silent >= SILENT_LIMIT:
                raise StorageError(
                    f"{answer.url}: no answer for {self._silent} objects in a row ({answer.problem}); check the "
                    "network and --url, then run the same command again: what is there is not asked for again"
                )

    def _session(self) -> requests.Session:
        """One a thread: sessions are not made to be shared."""
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
            self._local.session.headers["User-Agent"] = f"deepshadows/{__version__}"
            self._local.session.headers["Accept-Encoding"] = "identity"  # sizes are those of the body
        session: requests.Session = self._local.session
        return session

    def _get(self, url: str) -> _Answer:
        answer = _Answer(url=url)
        deadline = time.monotonic() + self.timeout_s
        try:
            with self._session().get(url, timeout=self.timeout_s, stream=True) as response:
                answer.status = response.status_code
                answer.content_type = response.headers.get("Content-Type", "")
                if response.status_code in _ASKS_FOR_PAUSE:
                    answer.retry_after_s = retry_after_s(response.headers.get("Retry-After"))
                answer.body = self._body(response, deadline)
                if response.status_code != 200:
                    answer.problem = f"HTTP {response.status_code} {response.reason or ''}".strip()
                    answer.final = response.status_code not in _TRY_AGAIN
        except (requests.Timeout, TimeoutError):
            answer.problem = f"no whole answer within {self.timeout_s:g} s"
        except (requests.RequestException, OSError) as error:
            answer.problem = f"{type(error).__name__}: {error}"
        except _BodyError as error:
            answer.problem = str(error)
        return answer

    def _body(self, response: requests.Response, deadline: float) -> bytes:
        """The whole body; `raw.read1` returns what has come, so that a server that trickles meets the deadline."""
        parts: list[bytes] = []
        size = 0
        while part := _read_some(response):
            parts.append(part)
            size += len(part)
            if time.monotonic() > deadline:
                raise TimeoutError
            if size > LARGEST_BODY_BYTES:
                raise _BodyError(f"the answer is larger than {LARGEST_BODY_BYTES} bytes")
        stated = response.headers.get("Content-Length", "")
        if stated.isdecimal() and int(stated) != size and "Content-Encoding" not in response.headers:
            raise _BodyError(f"cut off: {size} of {stated} bytes came")
        return b"".join(parts)


class _BodyError(Exception):
    """The body is not the whole answer."""


def _read_some(response: requests.Response) -> bytes:
    try:
        return response.raw.read1(_CHUNK_BYTES, decode_content=True) or b""
    except ReadTimeoutError as error:
        raise TimeoutError from error
    except HTTPError as error:
        raise _BodyError(f"cut off: {error}") from error


def address(url: str, parameters: Mapping[str, str]) -> str:
    """The URL with its query, as it is sent."""
    return requests.Request("GET", url, params=dict(parameters)).prepare().url or url


def retry_after_s(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number or a date; None where there is none to understand."""
    text = (header or "").strip()
    if text.isdecimal():
        return float(text)
    try:
        then = email.utils.parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    then = then if then.tzinfo else then.replace(tzinfo=datetime.UTC)
    return max((then - datetime.datetime.now(datetime.UTC)).total_seconds(), 0.0)
