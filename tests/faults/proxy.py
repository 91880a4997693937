"""A bad road to a store: an HTTP proxy that spoils a share of the answers, in ways that can be counted."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Sequence

import aiohttp
from aiohttp import web

KINDS = ("500", "503", "429", "reset", "lost", "truncated", "slow")
"""`reset` breaks off before the store is asked, `lost` after it has done what was asked."""
SLOW_S = 2.0
HOP_BY_HOP = ("transfer-encoding", "connection", "keep-alive", "content-encoding")


class Proxy:
    """Forwards to `target` on a port of its own; `counts` says what was done to how many requests."""

    def __init__(self, target: str, share: float, kinds: Sequence[str] = KINDS, seed: int = 1) -> None:
        self._target = target
        self.begin(share, kinds, seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port: int = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(20)

    def begin(self, share: float, kinds: Sequence[str], seed: int) -> None:
        """From here on, another share of the answers; `counts` begins anew."""
        self.counts: Counter[str] = Counter()
        self._share, self._kinds, self._random = share, kinds, random.Random(seed)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _start(self) -> int:
        timeout = aiohttp.ClientTimeout(total=60)
        self._session = aiohttp.ClientSession(auto_decompress=False, timeout=timeout)
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
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
        kind = self._random.choice(self._kinds) if self._random.random() < self._share else "good"
        self.counts[kind] += 1
        if kind.isdigit():
            await request.read()
            return web.Response(status=int(kind), text=f"<Error><Code>Injected</Code><Message>{kind}</Message></Error>")
        if kind == "reset":
            return self._break_off(request)
        if kind == "slow":
            await asyncio.sleep(SLOW_S)
        return await self._forward(request, kind)

    def _break_off(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def _forward(self, request: web.Request, kind: str) -> web.StreamResponse:
        """The request as it came, signed Host and all."""
        body = await request.read()
        try:
            async with self._session.request(
                request.method,
                f"{self._target}{request.rel_url.raw_path_qs}",
                headers=request.headers,
                data=body or None,
                allow_redirects=False,
            ) as answer:
                content = await answer.read()
        except aiohttp.ClientError:  # the store itself is away
            return self._break_off(request)
        if kind == "lost":
            return self._break_off(request)
        headers = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
        spoiled = web.StreamResponse(status=answer.status, headers=headers)
        await spoiled.prepare(request)
        await spoiled.write(content[: len(content) // 2] if kind == "truncated" else content)
        if kind == "truncated":
            self._break_off(request)
        else:
            await spoiled.write_eof()
        return spoiled
