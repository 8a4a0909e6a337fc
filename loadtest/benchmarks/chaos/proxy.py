"""A TCP proxy in front of one server, which can lose, delay and half-open its connections."""

import asyncio
import contextlib
import socket
import struct
import threading
from types import TracebackType


class Proxy:
    """Listens on a free port of this machine and forwards to `upstream`, in a thread of its own.

    Attributes:
        upstream: Port of the server for new connections.
        delay_s: Seconds that bytes are held, in each direction.
        silent: Whether bytes vanish: connections are accepted and never answered, as of a machine that has lost its
            network. Connections that lost bytes are closed when it ends.
        refusing: Whether connections are reset, the open ones and every new one.
    """

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.delay_s = 0.0
        self.silent = self.refusing = False
        self.port = 0
        self._open: set[asyncio.StreamWriter] = set()
        self._spoilt: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    @property
    def url(self) -> str:
        """Its address."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> "Proxy":
        self._thread.start()
        self._listening.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._end.set_result, None)
        self._thread.join()

    def reset(self) -> None:
        """Reset all open connections."""
        self._loop.call_soon_threadsafe(self._reset, self._open)

    def speak(self) -> None:
        """End `silent`."""
        self.silent = False
        self._loop.call_soon_threadsafe(self._reset, self._spoilt)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._end: asyncio.Future[None] = self._loop.create_future()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        await self._end
        server.close()
        self._reset(self._open)
        self._loop.set_exception_handler(lambda *_: None)  # of cancelled connections
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # aborted connections close in the loop's next turn

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its start to its end."""
        if self.refusing:
            _abort(writer)
            return
        self._open.add(writer)
        ends = [writer]
        try:
            with contextlib.suppress(OSError):
                from_server, to_server = await asyncio.open_connection("127.0.0.1", self.upstream)
                ends.append(to_server)
                await asyncio.gather(self._copy(reader, to_server, writer), self._copy(from_server, writer, writer))
        finally:
            self._open.discard(writer)
            self._spoilt.discard(writer)
            for end in ends:
                end.transport.abort()

    async def _copy(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, connection: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65_536):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if self.silent or connection in self._spoilt:
                    self._spoilt.add(connection)
                    continue
                target.write(data)
                await target.drain()
        if connection not in self._spoilt:
            target.close()

    def _reset(self, connections: set[asyncio.StreamWriter]) -> None:
        for writer in list(connections):
            _abort(writer)


def _abort(writer: asyncio.StreamWriter) -> None:
    """Reset a connection: the other end reads an error, not the end of a stream."""
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
