"""Fetches the bytes that a dataset's reference names, and no others: whatever was changed in its folder meanwhile."""

import errno
import os
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from jobs.errors import InvalidRequest
from jobs.references import Reference, parse_reference
from jobs.settings import Settings
from jobs.store import CHUNK_BYTES, Store, StoreUnavailable, StoreWriter, named_errors
from trainer_core.errors import DataError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Without waiting for somebody to write into a pipe."""
_NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO)
_MISSING = "Look at its name: links are not followed."


def fetch_reference(uri: str, path: Path, settings: Settings, keep: Callable[[], None]) -> StoreWriter:
    """Copy what a reference names to a local file; `keep` is called for every chunk.

    Raises DataError when it names nothing that may be fetched; OSError and StoreUnavailable when it may
    be fetched later.
    """
    try:
        reference = parse_reference(uri, settings.data_roots, "uri")
    except InvalidRequest as error:  # The operator closed its root meanwhile, or never opened it to this worker.
        raise DataError(error.code, error.message, remedy=str(error.details.get("remedy", ""))) from error
    with closing(_open(reference)) as source, path.open("wb") as file:
        writer = StoreWriter(file)
        while chunk := _read(source):
            if writer.num_bytes + len(chunk) > settings.max_upload_bytes:
                message = f"The file that the reference names has more than {settings.max_upload_bytes} bytes"
                raise DataError("file_too_large", message, remedy="Split it.")
            writer.write(chunk)
            keep()
    return writer


def _read(source: BinaryIO) -> bytes:
    with named_errors():
        return source.read(CHUNK_BYTES)


def _open(reference: Reference) -> BinaryIO:
    if reference.root.startswith("s3://"):
        return _open_object(reference)
    try:
        return _open_file(reference)
    except OSError as error:
        if error.errno in _NO_SUCH_FILE:
            raise DataError("reference_not_found", "The reference names no file", remedy=_MISSING) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise _unreadable() from error
        raise


def _open_object(reference: Reference) -> BinaryIO:
    try:
        return Store(reference.root).open("/".join(reference.names))
    except StoreUnavailable as error:
        if isinstance(error.__cause__, FileNotFoundError | IsADirectoryError):
            raise DataError(
                "reference_not_found", "The reference names no object", remedy="Look at its name."
            ) from error
        if isinstance(error.__cause__, PermissionError):
            raise _unreadable() from error
        raise


def _open_file(reference: Reference) -> BinaryIO:
    """From folder to folder by their descriptors: nobody can put a link in the place of what was looked at before."""
    folder = os.open(reference.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in reference.names[:-1]:
            inner = os.open(name, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = inner
        file = os.open(reference.names[-1], _FILE, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise DataError("reference_not_found", "The reference names no ordinary file", remedy="Name a file of rows.")
    return os.fdopen(file, "rb")


def _unreadable() -> DataError:
    remedy = "Let the workers that check datasets read it."
    return DataError("reference_unreadable", "The worker may not read what the reference names", remedy=remedy)
