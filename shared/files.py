"""Files that are written whole or not at all, and disks that are full or cannot be written to."""

import errno
import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from shared.errors import UserError

INCOMPLETE = ".incomplete"
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
