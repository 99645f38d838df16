"""Runs in the engine's network: print, one a line, every kind of packet on it, until the time is up or a SIGTERM.

A kind is who sent to whom over which protocol, between which ports, and whether it opens a connection. Ports from 32768
on, which callers get for a single call, count as 0. Last, how many packets came too fast to be read.
"""

import ctypes
import json
import signal
import socket
import struct
import sys
import time

SO_ATTACH_FILTER, SO_RCVBUFFORCE, SOL_PACKET, PACKET_STATISTICS, SHORT_LIVED = 26, 33, 263, 6, 32768
LOOPBACK = socket.if_nametoindex("lo")
# The kernel's packet filter: load the interface's number; loopback's packets, which no container sends, are left out.
NOT_LOOPBACK = b"".join(
    struct.pack("HBBI", *step)
    for step in ((0x20, 0, 0, 0xFFFFF008), (0x15, 0, 1, LOOPBACK), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFF))
)


def stop(*_: object) -> None:
    """Let the loop end."""
    global until
    until = 0.0


def kind(interface: str, frame: bytes) -> dict[str, object] | None:
    """What is said of a packet; None for what carries no address to anywhere (ARP, and the machine's own IPv6)."""
    ethertype = struct.unpack("!H", frame[12:14])[0]
    if ethertype == 0x0800:
        source, target, protocol = frame[26:30], frame[30:34], frame[23]
        rest = frame[14 + (frame[14] & 15) * 4 :]
    elif ethertype == 0x86DD and interface.startswith(("br-", "veth", "docker")):
        source, target, protocol, rest = frame[22:38], frame[38:54], frame[20], frame[54:]
    else:
        return None
    ports = struct.unpack("!HH", rest[:4]) if protocol in (6, 17) and len(rest) >= 4 else (0, 0)
    family = socket.AF_INET if len(source) == 4 else socket.AF_INET6
    return {
        "from": socket.inet_ntop(family, source),
        "to": socket.inet_ntop(family, target),
        "protocol": protocol,
        "ports": [port if port < SHORT_LIVED else 0 for port in ports],
        "opens": protocol == 6 and len(rest) > 13 and rest[13] & 0x12 == 0x02,  # SYN without ACK
    }


seen: set[str] = set()
until = time.monotonic() + float(sys.argv[1])
signal.signal(signal.SIGTERM, stop)
listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
program = ctypes.create_string_buffer(NOT_LOOPBACK)
listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", 4, ctypes.addressof(program)))
listener.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 256 << 20)  # a busy machine reads late, and hears all the same
listener.settimeout(1.0)
print(json.dumps({"listening": True}), flush=True)
while time.monotonic() < until:
    try:
        frame, where = listener.recvfrom(65535)
    except TimeoutError:
        continue
    if len(frame) < 34 or (found := kind(where[0], frame)) is None:
        continue
    line = json.dumps(found)
    if line not in seen:
        seen.add(line)
        print(line, flush=True)
read, missed = struct.unpack("II", listener.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
print(json.dumps({"read": read, "missed": missed}), flush=True)
