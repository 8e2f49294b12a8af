"""Files that are written whole or not at all, and those by which one process keeps others away."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path
from typing import IO

WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""What file systems say, as those of some clusters, that know no locks; nobody is kept away there."""


class HeldError(Exception):
    """A lock file that another process holds; the text says which, as "process 7 on host"."""


@contextmanager
def whole_file(path: Path) -> Iterator[BufferedWriter]:
    """A file to write into, which becomes `path` once all of it is on disk; after an error nothing is left.

    Until then it is a hidden sibling. What a killed process left there is overwritten by the next one.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def hold(path: Path) -> IO[str]:
    """Hold a lock file until it is closed; the system lets go of it at a kill. Unlink it before closing.

    Raises:
        HeldError: another process holds it.
    """
    lock = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The first holder may have finished, and its lock file gone, between the opening and the locking.
        busy = not (path.exists() and os.path.samestat(path.stat(), os.fstat(lock.fileno())))
    except BlockingIOError:
        busy = True
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            lock.close()
            raise
        busy = False
    if busy:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        raise HeldError(holder)
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}")
    lock.flush()
    # A forked worker that outlives this process would hold on to it.
    os.register_at_fork(after_in_child=lock.close)
    return lock


@contextmanager
def holding(path: Path) -> Iterator[None]:
    """Hold a lock file while entered; it is gone afterwards. Raises as `hold`."""
    lock = hold(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.close()
