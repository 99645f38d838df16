"""Runs in the engine's network: print, one a line, who sent to whom, until the time is up or a SIGTERM."""

import json
import signal
import socket
import struct
import sys
import time

seen: set[str] = set()
until = time.monotonic() + float(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
listener.settimeout(1.0)
print(json.dumps({"listening": True}), flush=True)
while time.monotonic() < until:
    try:
        frame, where = listener.recvfrom(65535)
    except TimeoutError:
        continue
    if where[0] == "lo" or len(frame) < 34:
        continue
    kind = struct.unpack("!H", frame[12:14])[0]
    if kind == 0x0800:
        header = (frame[14] & 15) * 4
        protocol = frame[23]
        ports = frame[14 + header : 18 + header]
        target = struct.unpack("!H", ports[2:4])[0] if protocol in (6, 17) and len(ports) == 4 else 0
        entry = {
            "from": socket.inet_ntoa(frame[26:30]),
            "to": socket.inet_ntoa(frame[30:34]),
            "protocol": protocol,
            "port": target if target < 32768 else 0,  # answers go to short-lived ports: one entry for all of them
        }
    elif kind == 0x86DD:
        entry = {
            "from": socket.inet_ntop(10, frame[22:38]),
            "to": socket.inet_ntop(10, frame[38:54]),
            "protocol": frame[20],
            "port": 0,
        }
    else:
        continue
    line = json.dumps(entry)
    if line not in seen:
        seen.add(line)
        print(line, flush=True)
