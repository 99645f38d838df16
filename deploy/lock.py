"""Add hashes to pinned requirements: ``python deploy/lock.py constraints.txt > lock.txt``.

pip itself finds and downloads the file for each pin, with whatever index and wheels it is configured for, and its own
report (``pip install --dry-run --report``) says the SHA-256 that it saw. The lock is for this Python and this platform.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["locked"]


def locked(report: dict[str, object]) -> list[str]:
    """A line for each distribution of pip's report that came from an index, with its version and SHA-256."""
    lines = []
    for entry in report["install"]:  # type: ignore[attr-defined]
        name, version = entry["metadata"]["name"], entry["metadata"]["version"]
        digest = entry["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if digest is None:
            raise ValueError(f"pip saw no SHA-256 of {name} {version}")
        lines.append(f"{name}=={version} --hash=sha256:{digest}")
    return sorted(lines, key=str.lower)


def main(constraints: Path) -> int:
    """Print the lock of every pin."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
        done = subprocess.run([*command, "--report", str(report), "-r", str(constraints)], check=False)
        if done.returncode:
            return done.returncode
        print("\n".join(locked(json.loads(report.read_text(encoding="utf-8")))))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
