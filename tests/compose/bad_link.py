"""In the gate's place: pass bytes to HOST PORT, but slowly, with resets, and for a while after a SIGUSR1 not at all."""

import asyncio
import contextlib
import random
import signal
import sys
import time

DELAY_S, BYTES_PER_S, RESET_CHANCE = 0.15, 125_000, 0.002
BLACKHOLE_S = 30.0
chance = random.Random(1)
ends: list[float] = []
"""When the blackhole ends, once it was asked for."""
back: list[float] = []
"""Seconds from the end of the blackhole to the first bytes of the site's that pass again."""


def begin_blackhole() -> None:
    """From now on nothing passes."""
    ends.append(time.monotonic() + BLACKHOLE_S)
    print("blackhole begins", flush=True)


def blackhole() -> bool:
    """Whether nothing passes right now."""
    return bool(ends) and time.monotonic() < ends[0]


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, from_site: bool) -> None:
    """One direction."""
    with contextlib.suppress(OSError):
        while data := await reader.read(16384):
            if chance.random() < RESET_CHANCE * max(1, len(data) // 100):
                print("reset", flush=True)
                return
            await asyncio.sleep(DELAY_S + len(data) / BYTES_PER_S)
            if blackhole():  # what was on its way is lost with its connection
                while blackhole():
                    await asyncio.sleep(0.2)
                print("reset", flush=True)
                return
            writer.write(data)
            await writer.drain()
            if from_site and ends and not back:
                back.append(time.monotonic() - ends[0])
                print(f"passing again {back[0]:.1f} s after the blackhole", flush=True)


async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection, both directions, ended together."""
    while blackhole():
        await asyncio.sleep(0.2)
    try:
        up_reader, up_writer = await asyncio.open_connection(sys.argv[1], int(sys.argv[2]))
    except OSError:
        writer.transport.abort()
        return
    ways = [asyncio.ensure_future(way) for way in (copy(reader, up_writer, True), copy(up_reader, writer, False))]
    _, pending = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    for way in pending:
        way.cancel()
    writer.transport.abort()
    up_writer.transport.abort()


async def main() -> None:
    """Serve for ever."""
    server = await asyncio.start_server(handle, "0.0.0.0", int(sys.argv[2]))
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, begin_blackhole)
    await server.serve_forever()


asyncio.run(main())
