"""Files and folders that a command cannot use, as errors with advice instead of tracebacks."""

import errno

from dpfpl_common.errors import DeploymentError

__all__ = ["file_error"]

_OWNER = "Give a folder that this user may use (ls -ld shows whose it is), or run the command as its owner."
_PATH = "Correct the path: a part of it is missing, is a file where a folder is needed, or the reverse."
_SPACE = "Free some space, then run the command again."
_KNOWN = {
    errno.EACCES: ("NO_ACCESS", _OWNER),
    errno.EPERM: ("NO_ACCESS", _OWNER),
    errno.EROFS: ("NO_ACCESS", "The disk is mounted read-only: give a folder elsewhere."),
    errno.ENOENT: ("WRONG_PATH", _PATH),
    errno.ENOTDIR: ("WRONG_PATH", _PATH),
    errno.EISDIR: ("WRONG_PATH", _PATH),
    errno.EEXIST: ("WRONG_PATH", _PATH),
    errno.ENAMETOOLONG: ("WRONG_PATH", _PATH),
    errno.ENOSPC: ("STORAGE_FULL", _SPACE),
    errno.EDQUOT: ("STORAGE_FULL", _SPACE),
}


def file_error(error: OSError) -> DeploymentError | None:
    """What to tell whoever ran a command; None for an error that is not about a file, or of another kind."""
    known = _KNOWN.get(error.errno or 0)
    if known is None or error.filename is None:
        return None
    code, advice = known
    return DeploymentError(code=code, message=f"{error.filename}: {error.strerror}.", advice=advice)
