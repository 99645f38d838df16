"""A kit as one file: an archive whose modes are right, with its checksum beside it."""

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

from dpfpl_common.errors import ConfigError
from dpfpl_server.kits import write_private, write_public

__all__ = ["ARCHIVE_KINDS", "archive_path", "pack_kit"]

ARCHIVE_KINDS = ("tar.gz", "zip")


def archive_path(kits_folder: Path, site: str, kind: str) -> Path:
    """Where a site's archive goes.

    Raises:
        ConfigError: there is no such kind of archive.
    """
    if kind not in ARCHIVE_KINDS:
        raise ConfigError(
            code="ARCHIVE_KIND",
            message=f"{kind!r} is not a kind of archive.",
            advice=f"Use one of: {', '.join(ARCHIVE_KINDS)}.",
        )
    return kits_folder / f"{site}.{kind}"


def pack_kit(kit: Path, archive: Path, kind: str) -> str:
    """Pack a kit's folder and return the archive's SHA-256, which also lies beside it as ``sha256sum -c`` reads it.

    The archive is as secret as the private keys in it: only its owner can read it, and every member keeps its file's
    mode. Owners and times are left out.
    """
    files = sorted(path for path in kit.iterdir() if path.is_file())
    content = (_tar if kind == "tar.gz" else _zip)(kit.name, files)
    digest = hashlib.sha256(content).hexdigest()
    write_private(archive, content)
    write_public(archive.with_name(f"{archive.name}.sha256"), f"{digest}  {archive.name}\n".encode())
    return digest


def _tar(site: str, files: list[Path]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        folder = tarfile.TarInfo(site)
        folder.type, folder.mode = tarfile.DIRTYPE, 0o700
        archive.addfile(folder)
        for path in files:
            content = path.read_bytes()
            member = tarfile.TarInfo(f"{site}/{path.name}")
            member.size, member.mode = len(content), path.stat().st_mode & 0o777
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _zip(site: str, files: list[Path]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            member = zipfile.ZipInfo(f"{site}/{path.name}")
            member.external_attr = (path.stat().st_mode & 0o177777) << 16  # a Unix mode, regular file included
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, path.read_bytes())
    return buffer.getvalue()
