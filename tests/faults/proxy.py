"""The road to a store: an HTTP proxy that spoils a share of the answers and makes things happen at chosen requests."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

KINDS = ("500", "503", "429", "reset", "lost", "truncated", "slow")
"""`reset` breaks off before the store is asked, `lost` after it has done what was asked."""
SLOW_S = 2.0
CODES = {"500": "InternalError", "503": "SlowDown", "429": "TooManyRequests"}
"""As S3 names them."""
IN_PIECES = ("transfer-encoding", "expect")
HOP_BY_HOP = ("transfer-encoding", "connection", "keep-alive", "content-encoding")


@dataclass(eq=False)
class Gate:
    """A request at which something is to happen: while it waits, before the store is asked or after it has answered."""

    method: str
    part: str
    """Of the path; empty for any."""
    nth: int
    action: Callable[[], object]
    answered: bool
    passed: Future[None] = field(default_factory=Future)
    seen: int = 0

    def is_reached(self, method: str, path: str) -> bool:
        """Count a request; True for the one that is meant."""
        meant = self.method in ("", method) and self.part in path
        self.seen += meant
        return meant and self.seen == self.nth


class Proxy:
    """Forwards to `target` on a port of its own; `counts` says what was done to how many requests."""

    def __init__(self, target: str, host: str = "127.0.0.1") -> None:
        self.target, self._host = target, host
        self._gates: list[Gate] = []
        self.be_good()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port: int = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(20)

    def spoil(self, share: float, kinds: Sequence[str] = KINDS, seed: int = 1) -> None:
        """From here on spoil that share of the answers; `counts` begins anew."""
        self.counts: Counter[str] = Counter()
        self._share, self._kinds, self._random = share, kinds, random.Random(seed)

    def be_good(self) -> None:
        """From here on spoil nothing; gates that were not reached are forgotten."""
        self.spoil(0.0)
        self._gates = []

    def at(
        self, nth: int, method: str, part: str, action: Callable[[], object], *, answered: bool = False
    ) -> Future[None]:
        """Do something while the `nth` such request from now on waits; the result is there once it is done."""
        gate = Gate(method, part, nth, action, answered)
        self._gates = [*self._gates, gate]
        return gate.passed

    @property
    def spoiled(self) -> int:
        return self.counts.total() - self.counts["good"]

    @property
    def endpoint(self) -> str:
        return f"http://{self._host}:{self.port}"

    async def _start(self) -> int:
        timeout = aiohttp.ClientTimeout(total=60)
        self._session = aiohttp.ClientSession(auto_decompress=False, timeout=timeout)
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, 0)
        await site.start()
        return int(self._runner.addresses[0][1])

    def stop(self) -> None:
        async def end() -> None:
            await self._session.close()
            await self._runner.cleanup()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        reached = [gate for gate in self._gates if gate.is_reached(request.method, request.path)]
        await self._happen(gate for gate in reached if not gate.answered)
        kind = self._random.choice(self._kinds) if self._random.random() < self._share else "good"
        self.counts[kind] += 1
        if kind.isdigit():
            await request.read()
            text = f"<Error><Code>{CODES[kind]}</Code><Message>injected</Message></Error>"
            return web.Response(status=int(kind), text=text, content_type="application/xml")
        if kind == "reset":
            return self._break_off(request)
        if kind == "slow":
            await asyncio.sleep(SLOW_S)
        return await self._forward(request, kind, [gate for gate in reached if gate.answered])

    async def _happen(self, gates: Iterable[Gate]) -> None:
        for gate in gates:
            try:
                await asyncio.to_thread(gate.action)
                gate.passed.set_result(None)
            except Exception as error:
                gate.passed.set_exception(error)

    def _break_off(self, request: web.Request) -> web.Response:
        if request.transport is not None:  # else who asked is gone
            request.transport.abort()
        return web.Response()

    async def _forward(self, request: web.Request, kind: str, gates: Sequence[Gate]) -> web.StreamResponse:
        """The request as it came, signed Host and all; its body in one piece."""
        body = await request.read()
        headers = {name: value for name, value in request.headers.items() if name.lower() not in IN_PIECES}
        try:
            async with self._session.request(
                request.method,
                f"{self.target}{request.rel_url.raw_path_qs}",
                headers=headers,
                data=body or None,
                allow_redirects=False,
            ) as answer:
                content = await answer.read()
        except (aiohttp.ClientError, ConnectionError):  # the store itself is away
            self.counts["away"] += 1
            return self._break_off(request)
        await self._happen(gates)
        if kind == "lost":
            return self._break_off(request)
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
        spoiled = web.StreamResponse(status=answer.status, headers=kept)
        await spoiled.prepare(request)
        await spoiled.write(content[: len(content) // 2] if kind == "truncated" else content)
        if kind == "truncated":
            self._break_off(request)
        else:
            await spoiled.write_eof()
        return spoiled
