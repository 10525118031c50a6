"""Store: the bytes of datasets and adapters, in a folder or at any fsspec URL. Keys are made by the service only."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

import fsspec

CHUNK_BYTES = 1 << 20
_LOCAL_OPTIONS = {"auto_mkdir": True}
# Others write there, too; and of each file that is open, a part is kept in memory (S3 allows 10,000 of them).
_S3_OPTIONS = {"use_listings_cache": False, "default_block_size": 16 << 20}


class StoreUnavailable(Exception):
    """The store, or the disk that it was to be copied to, did not do what was asked; later it may."""


@contextmanager
def named_errors() -> Iterator[None]:
    """Each kind of store has errors of its own."""
    try:
        yield
    except StoreUnavailable:
        raise
    except Exception as error:
        raise StoreUnavailable(f"{type(error).__name__}: {error}") from error


class StoreWriter:
    """Counts and hashes what is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: bytes) -> None:
        with named_errors():
            self._file.write(data)
        self._sha256.update(data)
        self.num_bytes += len(data)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()


class Store:
    def __init__(self, location: str) -> None:
        options = _S3_OPTIONS if location.startswith("s3://") else _LOCAL_OPTIONS
        self._filesystem, self._root = fsspec.url_to_fs(location, **options)

    @contextmanager
    def writing(self, key: str) -> Iterator[StoreWriter]:
        """Write an object; when the block raises, nothing stays. A row may name the key only after that.

        Raises StoreUnavailable.
        """
        path = self._path(key)
        with named_errors():
            file = self._filesystem.open(path, "wb")
        try:
            yield StoreWriter(file)
            with named_errors():
                file.close()
        except BaseException:
            for undo in (file.close, partial(self._filesystem.rm, path)):  # Only what is closed can be removed.
                with suppress(Exception):
                    undo()
            raise

    def put(self, path: Path, key: str) -> StoreWriter:
        """Copy a local file into the store. Raises StoreUnavailable."""
        with named_errors(), path.open("rb") as source, self.writing(key) as writer:
            while chunk := source.read(CHUNK_BYTES):
                writer.write(chunk)
        return writer

    def fetch(self, key: str, path: Path) -> None:
        """Copy an object to a local file. Raises StoreUnavailable."""
        with named_errors():
            self._filesystem.get_file(self._path(key), str(path))

    def exists(self, key: str) -> bool:
        """Raises StoreUnavailable."""
        with named_errors():
            return bool(self._filesystem.exists(self._path(key)))

    def open(self, key: str) -> BinaryIO:
        """Raises StoreUnavailable."""
        with named_errors():
            file: BinaryIO = self._filesystem.open(self._path(key), "rb")
        return file

    def delete(self, key: str) -> None:
        """Raises StoreUnavailable; not when it is gone already."""
        with named_errors(), suppress(FileNotFoundError):
            self._filesystem.rm(self._path(key))

    def list_sizes(self, folder: str) -> dict[str, int]:
        """Bytes of every object of a folder, by key. Raises StoreUnavailable."""
        with named_errors():
            path = self._path(folder)
            self._filesystem.invalidate_cache(path)  # Others write there, too.
            found = self._filesystem.find(path, detail=True)
            return {f"{folder}{name.removeprefix(path)}": int(one["size"]) for name, one in found.items()}

    def sweep(self, folder: str, keep: str | None = None) -> None:
        """Delete every object of a folder but the one with the key `keep`. Raises StoreUnavailable."""
        with named_errors():
            path = self._path(folder)
            self._filesystem.invalidate_cache(path)  # Others write there, too.
            for found in self._filesystem.find(path):
                if keep is None or not found.endswith(f"/{keep}"):
                    with suppress(FileNotFoundError):  # Somebody else does the same.
                        self._filesystem.rm(found)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"
