"""Runs inside a container: print its processes as JSON, the youngest first, with what the kernel says about each."""

import json
import os
from pathlib import Path

found = []
for folder in Path("/proc").glob("[0-9]*"):
    try:
        status = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line)
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        continue
    pid, parent = int(folder.name), int(status["PPid"])
    if (parent == 0 and pid != 1) or pid == os.getpid() or status["State"].startswith("Z"):
        continue  # brought in by exec, or dead
    found.append(
        {
            "pid": pid,
            "parent": parent,
            "uid": int(status["Uid"].split()[0]),
            "capabilities": int(status["CapEff"], 16) | int(status["CapPrm"], 16) | int(status["CapAmb"], 16),
            "no_new_privileges": status["NoNewPrivs"] == "1",
            "seccomp": status["Seccomp"],
            "command": command,
        }
    )
print(json.dumps(sorted(found, key=lambda process: -process["pid"])))
