"""A TCP proxy on loopback that behaves like a bad link: slow, narrow, resetting, silent, forgetful."""

import queue
import random
import socket
import struct
import threading
import time
from dataclasses import dataclass, field

__all__ = ["BadLink"]

_CHUNK = 4096
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST


@dataclass
class BadLink:
    """Carries bytes from ``port`` to ``target``, ports on loopback, as badly as its attributes say; they may change at
    any time. Port 0 takes a free one.

    ``rtt_s`` round trip; ``bytes_per_s`` each way; ``reset_share`` chance that a chunk resets its connection;
    ``blackhole`` swallows everything, new connections included, without a word; ``nat_idle_s`` forgets a connection
    that was silent for so long, as a NAT does: both ends keep theirs and hear nothing any more.
    """

    target: int
    port: int = 0
    rtt_s: float = 0.0
    bytes_per_s: float = 0.0
    reset_share: float = 0.0
    blackhole: bool = False
    nat_idle_s: float = 0.0
    seed: int = 0
    connections: int = 0
    resets: int = 0
    forgotten: int = 0
    carried: int = 0
    longest_silence_s: float = 0.0
    _pairs: list["_Pair"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "BadLink":
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.reset_all()

    def reset_all(self) -> None:
        """End every connection with a reset."""
        for pair in list(self._pairs):
            pair.reset()

    def half_open(self) -> None:
        """The server's end is gone, the site's end hears nothing of it."""
        for pair in list(self._pairs):
            pair.cut_server_side()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._pairs.append(_Pair(self, near))


class _Pair:
    def __init__(self, link: BadLink, near: socket.socket) -> None:
        self.link, self.near = link, near
        self.far: socket.socket | None = None
        self.silent = False
        self.last = time.monotonic()
        threading.Thread(target=self._run, daemon=True).start()

    def reset(self) -> None:
        for end in (self.near, self.far):
            if end is not None:
                try:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                end.close()
        if self in self.link._pairs:
            self.link._pairs.remove(self)

    def cut_server_side(self) -> None:
        self.silent = True
        if self.far is not None:
            self.far.close()

    def _run(self) -> None:
        while self.link.blackhole:
            time.sleep(0.05)
        try:
            self.far = socket.create_connection(("127.0.0.1", self.link.target), timeout=5)
        except OSError:
            self.near.close()
            return
        self.far.settimeout(None)
        for source, sink in ((self.near, self.far), (self.far, self.near)):
            waiting: queue.Queue[tuple[float, bytes]] = queue.Queue()
            threading.Thread(target=self._read, args=(source, waiting), daemon=True).start()
            threading.Thread(target=self._write, args=(sink, waiting), daemon=True).start()

    def _read(self, source: socket.socket, waiting: "queue.Queue[tuple[float, bytes]]") -> None:
        link = self.link
        while True:
            try:
                data = source.recv(_CHUNK)
            except OSError:
                data = b""
            if self.silent or (link.blackhole and data):
                self.silent = True  # what was swallowed TCP would send again; this proxy cannot
                if not data:
                    return
                continue
            now = time.monotonic()
            if link.nat_idle_s and now - self.last > link.nat_idle_s:
                link.forgotten += 1
                self.silent = True
                continue
            if data:
                link.longest_silence_s = max(link.longest_silence_s, now - self.last)
                self.last = now
            if data and link.reset_share and link.random.random() < link.reset_share:
                link.resets += 1
                self.reset()
                return
            waiting.put((now + link.rtt_s / 2, data))
            if not data:
                return

    def _write(self, sink: socket.socket, waiting: "queue.Queue[tuple[float, bytes]]") -> None:
        link = self.link
        while True:
            due, data = waiting.get()
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                if link.bytes_per_s:
                    time.sleep(len(data) / link.bytes_per_s)
                if self.silent or link.blackhole:
                    self.silent = True
                    continue
                sink.sendall(data)
                link.carried += len(data)
            except OSError:
                return
