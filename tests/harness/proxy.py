"""A TCP proxy between a driver and its server: counts round trips, goes silent, cuts."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sqlalchemy import URL


class Proxy:
    """Counts a turnaround each time that the client speaks after the server did."""

    def __init__(self, target: URL) -> None:
        self._target = target
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server_spoke = True
        self._delivers = asyncio.Event()
        self._delivers.set()
        self._answers = asyncio.Event()
        self._answers.set()
        self._released = asyncio.Event()
        self._released.set()
        self._word: bytes | None = None
        self._keeps_answer = False
        self.has_held = asyncio.Event()
        self.turnarounds = 0
        self.connections = 0
        self.url = target

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = self._target.set(host="127.0.0.1", port=server.sockets[0].getsockname()[1])
        return server

    def reset(self) -> None:
        self.turnarounds = self.connections = 0

    def swallow(self) -> None:
        """Deliver nothing more on the connections that exist, and close none: a black hole."""
        self._delivers.clear()
        self._delivers = asyncio.Event()
        self._delivers.set()

    def swallow_all(self) -> None:
        """Deliver nothing at all, on new connections neither, until `cut`."""
        self._delivers.clear()

    def withhold_answers(self) -> None:
        """Deliver what clients say but no answer, on the connections that exist."""
        self._answers.clear()
        self._answers = asyncio.Event()
        self._answers.set()

    def hold_answers(self) -> None:
        """Deliver what clients say, and answers only after `release_answers`."""
        self._released.clear()

    def hold_once(self, word: bytes, *, answer: bool) -> None:
        """Hold what a client says next with a word in it, or the answer, until `release_answers`.

        What comes after it on that connection waits too, a client's end included.
        """
        self.has_held.clear()
        self._word = word
        self._keeps_answer = answer

    def release_answers(self) -> None:
        self._released.set()

    def cut(self) -> None:
        """Close every connection, as a server does that goes away."""
        for writer in self._writers:
            writer.close()
        self._writers.clear()
        if not self._delivers.is_set():
            self.swallow()

    async def stop(self) -> None:
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(
                self._target.host, self._target.port
            )
        except OSError:  # the server is down
            writer.close()
            return
        self._writers += [writer, upstream_writer]
        for source, sink, is_client in (
            (reader, upstream_writer, True),
            (upstream_reader, writer, False),
        ):
            delivers = [self._delivers] if is_client else [self._delivers, self._answers]
            task = asyncio.create_task(self._pump(source, sink, delivers, is_client))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        delivers: list[asyncio.Event],
        is_client: bool,
    ) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65536):
                if is_client and self._server_spoke:
                    self.turnarounds += 1
                self._server_spoke = not is_client
                if is_client and self._word is not None and self._word in data:
                    self._word = None
                    self.hold_answers()
                    self.has_held.set()
                    if not self._keeps_answer:
                        await self._released.wait()
                if not is_client:
                    await self._released.wait()
                if all(one.is_set() for one in delivers):
                    sink.write(data)
                    await sink.drain()
        if all(one.is_set() for one in delivers):
            sink.close()


@asynccontextmanager
async def proxied(target: URL, kind: type[Proxy] = Proxy) -> AsyncGenerator[Proxy]:
    proxy = kind(target)
    server = await proxy.start()
    try:
        yield proxy
    finally:
        server.close()
        await proxy.stop()
        await server.wait_closed()
