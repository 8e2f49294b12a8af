"""A cache of byte ranges on the local disk, shared by the processes of a machine.

    FOLDER/SET/KEY    a range, complete; SET is drawn from the key

Every set has the same share of the limit, and makes room for a new range by removing those used longest ago
(last use: modification time). The limit therefore holds without a lock, an index or a pass over all files. A
process may be killed at any moment: a range is renamed to its key when it is complete, and a file that was
left unfinished is removed like any other that is not used.

Environment variables:
    VGSPLUS_CACHE       the folder; default: vgsplus in $XDG_CACHE_HOME, or in ~/.cache
    VGSPLUS_CACHE_GB    the limit in 10⁹ bytes, at least 2; default: 50
"""

import contextlib
import errno
import hashlib
import os
import uuid
from pathlib import Path

from vgsplus.errors import ConfigError, VgsplusError

SETS = 1024
"""At the default limit a set holds 49 MB: some 250 ranges, which are listed in half a millisecond."""
LIMIT_GB, LEAST_GB = 50.0, 2.0
FULL = (errno.ENOSPC, errno.EDQUOT)


def folder() -> Path:
    """Return the folder of the cache."""
    if named := os.environ.get("VGSPLUS_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vgsplus"


def share() -> int:
    """Return the limit of a set in bytes.

    Raises:
        ConfigError: VGSPLUS_CACHE_GB is not a number of at least 2.
    """
    text = os.environ.get("VGSPLUS_CACHE_GB") or str(LIMIT_GB)
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not LEAST_GB <= limit < float("inf"):
        raise ConfigError(f"VGSPLUS_CACHE_GB: must be a number of at least {LEAST_GB:g}, is {text!r}.")
    return int(limit * 1e9) // SETS


def load(name: str, size: int, start: int = 0, count: int | None = None) -> bytes | None:
    """Return a range of `size` bytes, or `count` of them from its byte `start`; None if it is not kept."""
    try:
        with _path(name).open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != size:
                return None
            with contextlib.suppress(PermissionError):  # a file of another user
                os.utime(file.fileno())
            return os.pread(file.fileno(), size if count is None else count, start)
    except FileNotFoundError:
        return None


def has(name: str, size: int) -> bool:
    """Return whether a range of `size` bytes is kept."""
    try:
        return _path(name).stat().st_size == size
    except FileNotFoundError:
        return False


def save(name: str, content: bytes) -> None:
    """Keep a range, unless it is larger than a set or the disk is full.

    Raises:
        VgsplusError: the folder cannot be written.
    """
    path, limit = _path(name), share()
    if len(content) > limit:
        return
    temporary = path.with_name(f".{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_room(path.parent, limit - len(content))
        temporary.write_bytes(content)
        temporary.replace(path)
    except FileNotFoundError:
        pass  # another process needed the room
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if error.errno not in FULL:
            raise VgsplusError(
                f"{path.parent}: cannot be written ({error.strerror}). Name another folder by VGSPLUS_CACHE."
            ) from None


def _path(name: str) -> Path:
    key = hashlib.sha256(name.encode()).hexdigest()
    return folder() / f"{int(key[:8], 16) % SETS:03x}" / key


def _make_room(members: Path, limit: int) -> None:
    """Remove the files used longest ago, until at most `limit` bytes are left."""
    found = []
    with os.scandir(members) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                stat = entry.stat(follow_symlinks=False)
                found.append((stat.st_mtime_ns, stat.st_size, entry.path))
    excess = sum(size for _, size, _ in found) - limit
    for _, size, path in sorted(found):
        if excess <= 0:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108 - a text, of os.scandir
        excess -= size
