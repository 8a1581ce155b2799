"""Writing a file so that it is complete or not there: under another name beside it, then renamed.

Only a regular file is replaced, never a device, a pipe, a socket or a directory, which a rename would turn
into a file. A symbolic link stays, and what it leads to is replaced. What a replaced file had of permissions
and owner stays too."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def kind_of(mode: int) -> str | None:
    """What a file of this st_mode is that is no regular file; None for one that is."""
    return None if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "not a regular file")


def destination(path: str | os.PathLike[str]) -> tuple[Path, os.stat_result | None]:
    """The file that is written when `path` is: where symbolic links lead to; and what is known of the one
    that is there already, None when there is none. OSError, which names `path`, when it cannot be written or
    replaced."""
    name = os.fsdecode(path)
    target = Path(os.path.realpath(name))
    try:
        found = os.stat(name)
    except FileNotFoundError:
        found = None
    if found is not None and (kind := kind_of(found.st_mode)):
        number = errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.EINVAL
        raise OSError(number, f"{kind}, not a file that can be replaced", name)
    if found is None and not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such directory", str(target.parent))
    if found is not None and any(_is_open_as(fd, found) for fd in (1, 2)):
        raise OSError(errno.EINVAL, "it is where this program's output goes", name)
    if found is not None and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "no permission to write in this directory", str(target.parent))
    return target, found


def _is_open_as(fd: int, found: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), found)
    except OSError:
        return False


def _allocate(fd: int, size: int, folder: Path) -> None:
    """Makes an empty file `size` zero bytes long, on the disk where the file system can do that."""
    try:
        os.posix_fallocate(fd, 0, size)
    except (AttributeError, OSError) as error:  # not on every system, and not in every file system
        if getattr(error, "errno", None) == errno.ENOSPC:
            what = f"not enough space: {size / 1e9:.2f} GB are needed"
            raise OSError(errno.ENOSPC, what, str(folder)) from None
        os.ftruncate(fd, size)


def _inherit(fd: int, found: os.stat_result) -> None:
    """Gives a new file the owner and the permissions of the one that it replaces."""
    mode, mine = stat.S_IMODE(found.st_mode), os.fstat(fd)
    if (mine.st_uid, mine.st_gid) != (found.st_uid, found.st_gid):
        try:
            os.fchown(fd, found.st_uid, found.st_gid)
        except OSError:  # only root may give a file away
            mode &= ~(stat.S_ISUID | stat.S_ISGID)
            with suppress(OSError):
                os.fchown(fd, -1, found.st_gid)
    os.fchmod(fd, mode)


@contextmanager
def replacing(path: str | os.PathLike[str], size: int = 0) -> Iterator[tuple[int, Path]]:
    """A new file of `size` zero bytes beside `path`, (descriptor, name). At the end it is flushed to the disk
    and becomes `path`; on any exception it is removed and `path` is as it was."""
    target, found = destination(path)
    temporary = target.with_name(f".pyllm-{secrets.token_hex(8)}.tmp")
    # What nobody else may read is not readable while it is written either
    mode = 0o666 if found is None else 0o600
    fd = -1
    try:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), mode)
        if size:
            _allocate(fd, size, target.parent)
        yield fd, temporary
        if found is not None:
            _inherit(fd, found)
        os.fsync(fd)
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = os.fsdecode(path)
        raise
    finally:
        if fd >= 0:
            os.close(fd)


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Writes all of the bytes at an offset."""
    view, done = memoryview(data).cast("B"), 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)
