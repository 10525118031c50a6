"""Store: the bytes of datasets and adapters, in a folder or at any fsspec URL. Keys are made by the service only."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import fsspec

CHUNK_BYTES = 1 << 20


class StoreWriter:
    """Counts and hashes what is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self.num_bytes += len(data)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()


class StoreUnavailable(Exception):
    """The store, or the disk that it was to be copied to, did not do what was asked; later it may."""


@contextmanager
def _named_errors() -> Iterator[None]:
    """Each kind of store has errors of its own."""
    try:
        yield
    except Exception as error:
        raise StoreUnavailable(f"{type(error).__name__}: {error}") from error


class Store:
    def __init__(self, location: str) -> None:
        self._filesystem, self._root = fsspec.url_to_fs(location, auto_mkdir=True)

    @contextmanager
    def writing(self, key: str) -> Iterator[StoreWriter]:
        """Write an object; when the block raises, nothing stays. A row may name the key only after that."""
        path = self._path(key)
        try:
            with self._filesystem.open(path, "wb") as file:
                yield StoreWriter(file)
        except BaseException:
            with suppress(FileNotFoundError):
                self._filesystem.rm(path)
            raise

    def put(self, path: Path, key: str) -> StoreWriter:
        """Copy a local file into the store. Raises StoreUnavailable."""
        with _named_errors(), path.open("rb") as source, self.writing(key) as writer:
            while chunk := source.read(CHUNK_BYTES):
                writer.write(chunk)
        return writer

    def fetch(self, key: str, path: Path) -> None:
        """Copy an object to a local file. Raises StoreUnavailable."""
        with _named_errors():
            self._filesystem.get_file(self._path(key), str(path))

    def exists(self, key: str) -> bool:
        """Raises StoreUnavailable."""
        with _named_errors():
            return bool(self._filesystem.exists(self._path(key)))

    def open(self, key: str) -> BinaryIO:
        file: BinaryIO = self._filesystem.open(self._path(key), "rb")
        return file

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError):
            self._filesystem.rm(self._path(key))

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"
