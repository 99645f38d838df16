"""Builds and controls ``storage_shim.c``, and replays its log as disks that lost power."""

import mmap
import os
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
_HEAD = struct.Struct("<4Q")
_LAYOUT = struct.Struct("<4i128s128s")


def missing_tools():
    """Why the shim cannot be used here; empty if it can."""
    if os.uname().sysname != "Linux":
        return "LD_PRELOAD as used here is Linux's"
    return "" if shutil.which("gcc") else "no gcc to build the shim with"


class Shim:
    """The shim for processes that are started with ``environment``, for files below ``root``."""

    def __init__(self, folder, root):
        library = folder / "storage_shim.so"
        subprocess.run(
            ["gcc", "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl", "-lpthread"], check=True
        )
        self.control, self.log = folder / "shim.control", folder / "shim.log"
        self.control.write_bytes(bytes(_LAYOUT.size))
        with self.control.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _LAYOUT.size)
        self.environment = {
            "LD_PRELOAD": str(library),
            "SHIM_CONTROL": str(self.control),
            "SHIM_LOG": str(self.log),
            "SHIM_ROOT": str(root),
        }

    def set(self, record=False, eio=0, eio_part="", full_part=None):
        """What to do from now on: record anew, let ``eio`` fsyncs fail, let writes to some paths find the disk full."""
        if record:
            self.log.write_bytes(b"")
        self._map[:] = _LAYOUT.pack(
            record, eio, full_part is not None, 0, eio_part.encode(), (full_part or "").encode()
        )

    @property
    def failed(self):
        """How many calls were made to fail since ``set``."""
        return _LAYOUT.unpack(self._map[:])[3]

    def operations(self):
        """Everything recorded, in order."""
        content, at, found = self.log.read_bytes(), 0, []
        while at < len(content):
            kind = chr(content[at])
            inode, number, first, second = _HEAD.unpack_from(content, at + 1)
            at += 1 + _HEAD.size
            one, two = content[at : at + first], content[at + first : at + first + second]
            at += first + second
            found.append(Operation(kind, inode, number, one, two))
        return found


@dataclass(frozen=True)
class Operation:
    """One call.

    Attributes:
        kind: C created, W written, T truncated, S synced (file or folder), R renamed, L linked, U unlinked, M made a
            folder, X sent to a socket.
        inode: of the file, where it is about an open one.
        number: offset of a write, length after a truncation.
        one, two: the path or the data; the target of a rename or the path of a write.
    """

    kind: str
    inode: int
    number: int
    one: bytes
    two: bytes

    @property
    def path(self):
        return (self.two if self.kind == "W" else self.one).decode()


class Disk:
    """A file system that forgets what was not synced, as POSIX allows; folders and files apart.

    A file's content is durable once the file was synced, a name (made, renamed, removed) once its folder was.
    """

    def __init__(self, root):
        self.root = str(root)
        self.names, self.durable_names = {}, {}  # path -> file, or None for a folder
        self.files, self.durable_files = {}, {}  # file -> content
        self.pending = {}  # file -> operations since the last sync
        self._current = {}  # inode -> file: the number of an inode that was removed comes back for another file

    def apply(self, operation):
        """Follow one operation."""
        file = self._current.get(operation.inode)
        match operation.kind:
            case "C":
                file = len(self.files)
                self._current[operation.inode] = self.names[operation.path] = file
                self.files[file] = self.durable_files[file] = b""
                self.pending[file] = []
            case "W" | "T":
                assert file is not None, operation.path
                self.files[file] = edited(self.files[file], operation)
                self.pending[file].append(operation)
            case "S" if operation.path in self.names and self.names[operation.path] is not None:
                self.durable_files[file] = self.files[file]
                self.pending[file] = []
            case "S":
                self._sync_folder(operation.path)
            case "M":
                self.names[operation.path] = None
            case "R":
                self.names[operation.two.decode()] = self.names.pop(operation.path)
            case "L":
                self.names[operation.two.decode()] = self.names[operation.path]
            case "U":
                self.names.pop(operation.path, None)

    def _sync_folder(self, folder):
        for names in (self.durable_names, self.names):
            for path in [p for p in names if os.path.dirname(p) == folder]:
                if path in self.names:
                    self.durable_names[path] = self.names[path]
                else:
                    self.durable_names.pop(path, None)

    def unsynced(self):
        """Paths of files with writes that a loss of power would drop, and names whose folder was not synced."""
        files = [path for path, file in self.names.items() if file is not None and self.pending[file]]
        names = [path for path, file in self.names.items() if self.durable_names.get(path, -1) != file]
        return {path for path in files + names if not path.endswith("-shm")}

    def after_power_loss(self, target, chance=None, names="durable"):
        """Write what a loss of power may leave to the folder ``target``.

        Args:
            target: stands for the root; made anew.
            chance: None drops every write that was not synced; a ``random.Random`` keeps any 512-byte sectors of them.
            names: "durable" drops every name that was not synced, "all" keeps them, as a journal often does.
        """
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True, mode=0o700)
        kept = self.durable_names if names == "durable" else self.names
        for path, file in sorted(kept.items(), key=lambda entry: entry[0]):
            if not self._reachable(path, kept):
                continue
            place = target / os.path.relpath(path, self.root)
            if file is None:
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
                continue
            content = self.durable_files[file]
            if chance is not None:
                for operation in self.pending[file]:
                    content = torn(content, operation, chance)
            if not path.endswith("-shm"):  # an index in memory, made anew
                place.write_bytes(content)
                place.chmod(0o600)

    def _reachable(self, path, kept):
        folder = os.path.dirname(path)
        while len(folder) > len(self.root):
            if folder not in kept:
                return False
            folder = os.path.dirname(folder)
        return True


def edited(content, operation):
    """The content after a write or a truncation."""
    at = operation.number
    if operation.kind == "T":
        return content[:at].ljust(at, b"\0")
    return content[:at].ljust(at, b"\0") + operation.one + content[at + len(operation.one) :]


def torn(content, operation, chance):
    """The content after a write of which any sectors may have reached the disk, or a truncation that may have."""
    if operation.kind == "T":
        return edited(content, operation) if chance.random() < 0.5 else content
    for start in range(operation.number - operation.number % 512, operation.number + len(operation.one), 512):
        first, last = max(start, operation.number), min(start + 512, operation.number + len(operation.one))
        if chance.random() < 0.5:
            data = operation.one[first - operation.number : last - operation.number]
            content = edited(content, Operation("W", 0, first, data, b""))
    return content
