"""Files that are written whole or not at all, folders with one writer, and disks that cannot be written to."""

import errno
import fcntl
import glob
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from shared.errors import UserError

logger = logging.getLogger(__name__)

INCOMPLETE, LOCK = ".incomplete", ".lock"
DISK_PROBLEMS = {  # why a file of the run's folder could not be written, and what to do
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "your quota of the disk is used up: free some space",
    errno.EFBIG: "the file would be larger than this process or file system allows: raise the limit",
    errno.EROFS: "it is read-only: make it writable",
    errno.EACCES: "it may not be written to: make it writable",
    errno.EPERM: "it may not be written to: make it writable",
    errno.EIO: "the disk reports an error: see the system's log",
    errno.ENOENT: "the folder is gone: bring it back",
    errno.ESTALE: "the file server has lost it: mount it again",
}
WRITING_ALONE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # what reading never ends in


@contextmanager
def whole_file(path: str, mode: str = "wb") -> Iterator[IO]:
    """`with whole_file(path) as f: f.write(...)`: after the block `path` has the new content, on disk; where the block
    or the process ends before, it is what it was.

    A file of another name in the same folder is written, synced and renamed. A killed process may leave that one
    behind, see `remove_incomplete`.
    """
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f".{name}{INCOMPLETE}")
    try:
        with open(temporary, mode) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.remove(temporary)
        raise
    _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    """Put a rename on disk. Some file systems have no such thing."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_incomplete(folder: str) -> None:
    """Delete what a process that was killed while writing left in `folder`."""
    for file in glob.glob(os.path.join(glob.escape(folder), f".*{INCOMPLETE}")):
        os.remove(file)


# ---------------------------------------------------------------- one writer
_locks: set[int] = set()  # the descriptors by which this process holds its locks


@contextmanager
def alone_in(folder: str, command: str) -> Iterator[None]:
    """UserError where another process is in this block for the same folder; `command` names it.

    The lock, on the file `.lock`, ends with its process, however that ends: forked children let go of it. A file system
    without locks keeps nobody out.
    """
    with disk_errors(folder):
        lock = os.open(os.path.join(folder, LOCK), os.O_RDWR | os.O_CREAT, 0o666)
    _locks.add(lock)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise UserError(f"Another {command} trains in {folder}: wait for it, or end it.") from e
        except OSError:
            logger.info("%s is on a file system without locks: nothing keeps a second %s out.", folder, command)
        yield
    finally:
        if lock in _locks:  # a forked child has none
            _locks.remove(lock)
            os.close(lock)


def _let_go_of_locks() -> None:
    while _locks:
        os.close(_locks.pop())


os.register_at_fork(after_in_child=_let_go_of_locks)


# ---------------------------------------------------------------- disks
class DiskError(UserError):
    """A file could not be written."""


@contextmanager
def disk_errors(folder: str) -> Iterator[None]:
    """Errors of writing below `folder` in the block become a DiskError, a sentence with the cause."""
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError) as e:
        cause = _disk_cause(e, os.path.abspath(folder))
        if cause is None:
            raise
        place = cause.filename if isinstance(cause.filename, str) else f"a file in {folder}"
        raise DiskError(f"{place} cannot be written ({cause.strerror}): {DISK_PROBLEMS[cause.errno]}.") from e


def _disk_cause(e: BaseException | None, folder: str) -> OSError | None:
    """torch.save hides the OSError of a file that it writes to behind a RuntimeError of its own."""
    while e is not None:
        if isinstance(e, OSError) and e.errno in DISK_PROBLEMS:
            inside = isinstance(e.filename, str) and os.path.abspath(e.filename).startswith(folder)
            if inside or e.errno in WRITING_ALONE:
                return e
        e = e.__cause__ or e.__context__
    return None
