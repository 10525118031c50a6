"""A hub of models, the one of HF_ENDPOINT: which commit a revision is, and its files, each compared with its sum.

huggingface_hub loads its parts when they are used, so the API does not start any slower with it.
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub

from jobs.errors import Conflict, InvalidRequest, MedtuneError

if TYPE_CHECKING:
    import huggingface_hub.errors
    from huggingface_hub.hf_api import RepoSibling

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # Else it asks, and tells, more than a download takes.

COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")
_SECONDS = 10
"""A hub that does not answer for so long is not there."""
_CHUNK_BYTES = 1 << 20
_OF_THIS_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
"""Errors of its disk."""


def resolve_revision(hub_id: str, revision: str) -> str:
    """The full commit of a branch or tag, from the hub. Raises Conflict, InvalidRequest."""
    commit, files = _describe(hub_id, revision)
    _check_names(hub_id, [file.rfilename for file in files])
    return commit


def fetch_snapshot(hub_id: str, commit: str, folder: Path, *, with_code: bool) -> None:
    """Safetensors, configuration and tokenizer of a commit, as a new folder that is there whole or not at all.

    A download that was cut off goes on where it was. `with_code`: also the model's own Python files. Raises Conflict,
    InvalidRequest, OSError.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial")
    with _lock(folder.parent):
        if folder.exists():
            return
        _, files = _describe(hub_id, commit)
        _check_names(hub_id, [file.rfilename for file in files])
        suffixes = (*_SUFFIXES, ".py") if with_code else _SUFFIXES
        wanted = [file for file in files if "/" not in file.rfilename and file.rfilename.endswith(suffixes)]
        with _clear_errors(hub_id):
            names = [re.sub(r"[*?[]", r"[\g<0>]", file.rfilename) for file in wanted]  # Names, and no patterns.
            huggingface_hub.snapshot_download(hub_id, revision=commit, local_dir=partial, allow_patterns=names)
        shutil.rmtree(partial / ".cache", ignore_errors=True)
        for path in {*partial.iterdir()} - {partial / file.rfilename for file in wanted}:
            path.unlink()  # Of an earlier pull that was cut off, when the operator trusted its code.
        try:
            for file in wanted:
                _check_file(partial / file.rfilename, file)
        except MedtuneError:
            shutil.rmtree(partial)  # Of files that are wrong, none is to be gone on with.
            raise
        partial.rename(folder)


def _describe(hub_id: str, revision: str) -> tuple[str, list["RepoSibling"]]:
    """The commit, and its files with their sums. It is asked once: who has no hub is to hear so soon."""
    with _clear_errors(hub_id):
        info = huggingface_hub.HfApi().model_info(hub_id, revision=revision, files_metadata=True, timeout=_SECONDS)
    assert info.sha is not None
    return info.sha, info.siblings or []


def _check_names(hub_id: str, names: list[str]) -> None:
    """Raises InvalidRequest for a model without safetensors at its top."""
    if not any("/" not in name and name.endswith(".safetensors") for name in names):
        raise InvalidRequest(
            "model_weights_pickle" if any(name.endswith((".bin", ".pt", ".pth")) for name in names) else "no_weights",
            f"{hub_id} has no *.safetensors weights; other formats run code when they are loaded, or are not read",
            param="source",
            remedy="Name a revision with safetensors, or convert the weights on a machine without secrets.",
        )


def _check_file(path: Path, expected: "RepoSibling") -> None:
    """Large files have a SHA-256, small ones git's own sum of their content."""
    digest = hashlib.sha256() if expected.lfs else hashlib.sha1(usedforsecurity=False)
    if not expected.lfs:
        digest.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != (expected.lfs.sha256 if expected.lfs else expected.blob_id):
        message = f"{expected.rfilename} is not what the hub says that it is; nothing was kept"
        raise Conflict("model_files_damaged", message, remedy="Pull again; look after the network, or the mirror.")


@contextmanager
def _clear_errors(hub_id: str) -> Iterator[None]:
    """What the hub says, or that there is none, as an error with a remedy."""
    try:
        yield
    except huggingface_hub.errors.HFValidationError as error:
        raise InvalidRequest("source_invalid", str(error), param="source") from error
    except huggingface_hub.errors.GatedRepoError as error:
        remedy = "Accept its conditions on the hub, and set HF_TOKEN."
        raise InvalidRequest("model_gated", f"{hub_id} is gated", param="source", remedy=remedy) from error
    except huggingface_hub.errors.RevisionNotFoundError as error:
        message = f"{hub_id} has no such revision"
        raise InvalidRequest("revision_not_found", message, param="revision", remedy="Look at its commits.") from error
    except huggingface_hub.errors.RepositoryNotFoundError as error:
        remedy = "Look at its name; a private one needs HF_TOKEN."
        raise InvalidRequest("source_not_found", f"the hub has no {hub_id}", param="source", remedy=remedy) from error
    except (OSError, ValueError, huggingface_hub.errors.HTTPError) as error:  # type: ignore[attr-defined]  # httpx2's
        if isinstance(error, OSError) and error.errno in _OF_THIS_MACHINE:
            raise
        endpoint = huggingface_hub.constants.ENDPOINT
        raise Conflict(
            "hub_unreachable",
            f"the hub {endpoint} does not answer for {hub_id}: {type(error).__name__}",
            param="source",
            remedy="Set HF_ENDPOINT to a mirror that this machine reaches, or copy the model's folder (safetensors, "
            "config.json, tokenizer) from a machine that has it, and add that folder.",
        ) from error


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
