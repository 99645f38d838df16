"""The one way out of a site: passes bytes to the federation's server and nowhere else.  ``python gate.py HOST PORT``

The SuperNode runs code that the operator chose, so its network has no way out but this. TLS passes through unopened.
With ``LISTEN_PORT`` as a third argument it listens elsewhere than on the server's own port.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Coroutine

__all__ = ["serve"]

_CHUNK = 65536
_CONNECT_S = 10.0
_MAX_CONNECTIONS = 64


async def serve(host: str, port: int, listen_port: int) -> None:
    """Forward every connection until SIGTERM."""
    free = asyncio.Semaphore(_MAX_CONNECTIONS)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if free.locked():
            writer.close()
            return
        async with free:
            try:
                up_reader, up_writer = await asyncio.wait_for(asyncio.open_connection(host, port), _CONNECT_S)
            except (OSError, TimeoutError) as error:
                print(f"the server {host}:{port} cannot be reached: {error or 'no answer'}", flush=True)
                writer.close()
                return
            try:
                await _first_to_end(_copy(reader, up_writer), _copy(up_reader, writer))
            finally:
                for side in (writer, up_writer):
                    side.transport.abort()

    server = await asyncio.start_server(handle, "0.0.0.0", listen_port)  # noqa: S104  the container's internal network
    print(f"passing {listen_port} on to {host}:{port}", flush=True)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    server.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()


async def _first_to_end(*ways: Coroutine[None, None, None]) -> None:
    """Wait until one direction has ended, then end the other: gRPC has no use for half a connection."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else int(sys.argv[2])))
