"""One driver at a time: RUN/lease.json, kept alive by conditional writes. Vocabulary only.

Nobody's clock is trusted: a lease is dead when its heartbeat stands still for `ttl_s` on the watcher's own monotonic
clock, or when its holder was a process of this machine that no longer runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deepshadows import storage
from deepshadows.outcomes import Failure, HeldError, NotFoundError, StorageError

TTL_S = 30.0
_POLL_S = 0.5


def _host() -> str:
    """This boot of this machine and this namespace of process ids; empty where the system does not tell.

    Containers of one machine share its boot id, but cannot see each other's processes.
    """
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process_start(pid: int) -> str:
    """Start time of a process in clock ticks; empty where it does not run."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rsplit(")", 1)[1].split()
    return "" if fields[0] in "ZX" else fields[19]


class Lease:
    """Hold the lease of a run while the block runs.

    Raises
    ------
    HeldError
        On entering: another driver is alive. From `check`: another driver took over.
    """

    def __init__(self, run: str, ttl_s: float = TTL_S) -> None:
        self.token = uuid.uuid4().hex
        self._url = storage.join(run, "lease.json")
        self._ttl_s = ttl_s
        self._beat = 0
        self._generation = 0
        self._etag = ""
        self._lost: Failure | None = None
        self._writing = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._acquire()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._lost is None:
            with contextlib.suppress(StorageError):  # one that is not released dies of age
                self._put(released=True)

    def check(self) -> None:
        """Raise where the lease was lost: what follows would not be ours to write."""
        if self._lost is not None:
            raise self._lost

    def confirm(self) -> None:
        """Renew at once, before what only the holder may do: who was paused does not know yet that he was replaced."""
        self._renew()
        self.check()

    def _renew(self) -> None:
        with self._writing:
            if self._lost is None and not self._put():
                self._lost = HeldError(
                    f"{self._url}: another driver took this run over; this one stops without committing"
                )

    def _body(self, *, released: bool = False) -> bytes:
        pid = os.getpid()
        record = {
            "token": self.token,
            "generation": self._generation,
            "beat": self._beat,
            "host": _host(),
            "pid": pid,
            "started": _process_start(pid),
            "released": released,
        }
        return json.dumps(record).encode()

    def _acquire(self) -> None:
        storage.create(self._url, self._body())
        try:
            if self._is_ours():
                return
            self._outlive()
        except NotFoundError as error:
            raise HeldError(f"{self._url}: another driver has just finished; start again to see what it did") from error

    def _outlive(self) -> None:
        """Take the lease over once its holder is dead."""
        seen, holder = self._read()
        deadline = time.monotonic() + self._ttl_s
        while not self._is_dead(holder):
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
            now, holder = self._read()
            if now != seen and not holder.get("released"):
                raise HeldError(
                    f"{self._url}: another driver (pid {holder.get('pid')}) works on this run; "
                    "wait for it, or stop it and start again"
                )
            seen = now
        self._generation = int(holder.get("generation", 0)) + 1
        self._etag = seen
        if not self._put():
            raise HeldError(f"{self._url}: another driver took this run over at the same moment")

    def _read(self) -> tuple[str, dict[str, Any]]:
        etag = storage.stat(self._url).etag
        try:
            record = json.loads(storage.read(self._url))
            numbers = [int(record.get(name, 0)) for name in ("generation", "pid")]
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise StorageError(f"{self._url}: damaged lease; delete it if no driver runs") from error
        return etag, {**record, "generation": numbers[0], "pid": numbers[1]}

    @staticmethod
    def _is_dead(holder: dict[str, Any]) -> bool:
        if holder.get("released"):
            return True
        here = bool(holder.get("host")) and holder.get("host") == _host()
        return bool(here and _process_start(int(holder.get("pid", 0))) != holder.get("started"))

    def _put(self, *, released: bool = False) -> bool:
        """Write where nobody else has. What is there then decides: a client that repeats a write whose answer was
        lost is told that the object has changed, by itself."""
        self._beat += 1
        try:
            storage.replace(self._url, self._body(released=released), self._etag)
            return self._is_ours()
        except NotFoundError:  # whoever took over has finished, and removed it
            return False

    def _is_ours(self) -> bool:
        """Take the etag of what we wrote; False where another driver has written since."""
        self._etag, holder = self._read()
        return bool(holder.get("token") == self.token)

    def _keep(self) -> None:
        """Renew well before a watcher would call the lease dead; what cannot be renewed in time is lost."""
        renewed = time.monotonic()
        while not self._stop.wait(self._ttl_s / 6):
            try:
                self._renew()
                renewed = time.monotonic()
            except StorageError as error:
                if time.monotonic() - renewed > self._ttl_s:
                    self._lost = StorageError(
                        f"{self._url}: could not be renewed for {self._ttl_s:.0f} s: {error}; "
                        "when the store answers, run the same command again to go on"
                    )
            if self._lost is not None:
                return


def check_holder(run: str, token: str) -> None:
    """Raise `HeldError` where the driver with this token no longer holds the lease: what its workers ask."""
    lease = Lease(run)
    try:
        holder = lease._read()[1].get("token")
    except NotFoundError:
        holder = None
    if holder != token:
        raise HeldError(f"{lease._url}: another driver took this run over; this one's workers stop")


def is_driven(run: str) -> bool:
    """True where a driver keeps the lease of a run alive; watches for as long as a lease lives."""
    lease = Lease(run)
    try:
        seen, holder = lease._read()
        deadline = time.monotonic() + TTL_S
        while not lease._is_dead(holder) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            now, holder = lease._read()
            if now != seen:
                return not holder.get("released")
    except NotFoundError:
        pass  # nobody has begun
    return False
