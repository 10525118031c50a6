"""The files of an adapter's folder, and `manifest.json`, which lists each with its size and sha256. Torch-free."""

import hashlib
from pathlib import Path

from pydantic import BaseModel, ValidationError

from trainer_core.errors import VerificationError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
BASE_FILE = "base_model.json"
"""Which base it was trained on: {"id", "revision", "fingerprint"}."""
ENVIRONMENT_FILE = "environment.json"
"""trainer_core.adapters.environment."""
TOKENIZER_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
VERIFICATION_FILE = "verification.json"
"""What `verify` found; the worker puts it here."""
CARD_FILE = "README.md"
BILL_FILE = "bom.cdx.json"
MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = "signature.sig"

REQUIRED_FILES = (
    *(CONFIG_FILE, WEIGHTS_FILE, BASE_FILE, ENVIRONMENT_FILE, TOKENIZER_FILE, TEMPLATE_FILE),
    *(VERIFICATION_FILE, CARD_FILE, BILL_FILE),
)
"""What every adapter has, beside the manifest and the signature."""


class ManifestEntry(BaseModel):
    bytes: int
    sha256: str


class AdapterManifest(BaseModel):
    version: int = 1
    job: str
    attempt: int
    files: dict[str, ManifestEntry]


def list_files(folder: Path) -> list[str]:
    """Every file but the signature, by its path in the folder. Raises VerificationError for what is no plain file."""
    names = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise VerificationError("file_invalid", f"{name} is a link, or no plain file.")
        if path.is_file() and name != SIGNATURE_FILE:
            names.append(name)
    return sorted(names)


def write_adapter_manifest(folder: Path, *, job: str, attempt: int) -> None:
    """Of all files that are there now."""
    names = [name for name in list_files(folder) if name != MANIFEST_FILE]
    files = {
        name: ManifestEntry(bytes=(folder / name).stat().st_size, sha256=hash_file(folder / name)) for name in names
    }
    manifest = AdapterManifest(job=job, attempt=attempt, files=files)
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")


def load_adapter_manifest(folder: Path) -> AdapterManifest:
    """Raises OSError, VerificationError."""
    try:
        return AdapterManifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    except ValidationError as error:
        raise VerificationError("manifest_invalid", f"{MANIFEST_FILE} is not what it should be: {error}") from None


def find_differences(folder: Path) -> list[str]:
    """In what the folder is not what its manifest lists. Raises OSError, VerificationError."""
    manifest = load_adapter_manifest(folder)
    listed, there = set(manifest.files), set(list_files(folder)) - {MANIFEST_FILE}
    differences = [f"{name} is missing" for name in sorted(listed - there)]
    differences += [f"{name} is not in the manifest" for name in sorted(there - listed)]
    differences += [f"{name} is not listed, and every adapter has it" for name in REQUIRED_FILES if name not in listed]
    for name in sorted(listed & there):
        if hash_file(folder / name) != manifest.files[name].sha256:
            differences.append(f"{name} has other content")
    return differences


def hash_file(path: Path) -> str:
    """sha256, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
