"""A small TCP proxy on loopback that fails as networks do: cut, silent, half open."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any

_CHUNK_BYTES = 1 << 16


class Network:
    """A context: the links that it opened work until it ends, in a thread of their own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)
        self._links: list[Link] = []

    def __enter__(self) -> "Network":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def open_link(self, port: int) -> "Link":
        """To a server on loopback."""
        link = Link(port, self._call)
        self._run(link.listen())
        self._links.append(link)
        return link

    def _call(self, change: Callable[[], None]) -> None:
        async def run() -> None:
            change()

        self._run(run())

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _shut(self) -> None:
        for link in self._links:
            link.shut()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Link:
    """One client's way to one server. `port` is where the client connects."""

    def __init__(self, target_port: int, call: Callable[[Callable[[], None]], None]) -> None:
        self._target_port = target_port
        self._call = call
        self._connections: set[_Connection] = set()
        self._is_cut = False
        self._flows = asyncio.Event()
        self._flows.set()
        self.port = 0

    @property
    def num_connections(self) -> int:
        """Of now."""
        return len(self._connections)

    def cut(self) -> None:
        """Every connection is reset, and new ones are too."""

        def change() -> None:
            self._is_cut = True
            self._flows.set()
            self._drop_all()

        self._call(change)

    def blackhole(self) -> None:
        """Nothing comes through any more, in either direction, and nobody is told."""
        self._call(self._flows.clear)

    def reset(self) -> None:
        """Every connection is reset, and new ones work."""
        self._call(self._drop_all)

    def deafen(self) -> None:
        """The connections of now never hear a word again and look alive; new ones work."""

        def change() -> None:
            for connection in self._connections:
                connection.is_deaf = True

        self._call(change)

    def restore(self) -> None:
        """New connections work; what a black hole held back goes on its way."""

        def change() -> None:
            self._is_cut = False
            self._flows.set()

        self._call(change)

    # --- In the loop's thread ---

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def shut(self) -> None:
        self._server.close()
        self._drop_all()

    def _drop_all(self) -> None:
        for connection in self._connections:
            connection.drop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(writer)
        self._connections.add(connection)
        try:
            await self._flows.wait()
            if not self._is_cut:
                upstream, connection.upstream = await asyncio.open_connection("127.0.0.1", self._target_port)
                answers = asyncio.create_task(self._pump(upstream, writer, connection))
                await self._pump(reader, connection.upstream, connection)
                answers.cancel()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(connection)
            connection.drop()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, connection: "_Connection") -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(_CHUNK_BYTES):
                await self._flows.wait()
                if not connection.is_deaf:
                    sink.write(data)
                    await sink.drain()
        await self._flows.wait()
        if not connection.is_deaf:
            sink.close()


class _Connection:
    def __init__(self, downstream: asyncio.StreamWriter) -> None:
        self._downstream = downstream
        self.upstream: asyncio.StreamWriter | None = None
        self.is_deaf = False

    def drop(self) -> None:
        for writer in (self._downstream, self.upstream):
            if writer is not None:
                writer.transport.abort()
