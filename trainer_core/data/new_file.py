"""A new file that is there whole or not at all, also after a kill, and never in the place of another."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.EISDIR)


@contextlib.contextmanager
def write_new_file(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """It appears under its name when the block ends without an error. Raises FileExistsError and other OSErrors."""
    if path.exists() or path.is_symlink():
        raise FileExistsError(errno.EEXIST, "there is a file already; choose another name", str(path))
    with contextlib.ExitStack() as stack:
        descriptor, name = _open_nameless(path, mode, stack)
        file = stack.enter_context(os.fdopen(descriptor, "wb"))
        yield file
        file.flush()
        os.fsync(descriptor)
        folder = os.open(path.parent, os.O_RDONLY)
        stack.callback(os.close, folder)
        os.link(name, path, src_dir_fd=folder)  # With a folder, link follows the symbolic link of /proc.
        os.fsync(folder)


def _open_nameless(path: Path, mode: int, stack: contextlib.ExitStack) -> tuple[int, str]:
    """Without a name nothing is left behind; a file system that knows no such files gets a hidden one."""
    try:
        descriptor = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY, mode)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
    else:
        return descriptor, f"/proc/self/fd/{descriptor}"
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    stack.callback(os.unlink, name)
    return descriptor, str(Path(name).resolve())
