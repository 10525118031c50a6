"""What can be proven of an adapter's folder by whoever was given it: `medtune verify`. Torch-free.

Every check is made, whatever the others say. One that cannot be told (no key at hand) is neither passed nor failed.
"""

import json
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from trainer_core.adapters.bill_of_materials import read_claims
from trainer_core.adapters.card import read_front_matter
from trainer_core.adapters.fingerprint import compute_base_fingerprint
from trainer_core.adapters.gate import check_adapter_folder
from trainer_core.adapters.manifest import (
    BASE_FILE,
    BILL_FILE,
    CARD_FILE,
    VERIFICATION_FILE,
    WEIGHTS_FILE,
    find_differences,
    hash_file,
    load_adapter_manifest,
)
from trainer_core.adapters.signature import check_signature
from trainer_core.errors import ConfigurationError, ModelError, VerificationError

_MAX_NAMED = 5


class Result(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Check(BaseModel):
    name: str
    result: Result
    message: str
    remedy: str = ""


def prove_adapter(folder: Path, *, public_key: Path | None, base: Path | None) -> list[Check]:
    """Of a folder as the archive holds it. Without a public key, or a base's folder, less can be told."""
    checks: list[tuple[str, str, Callable[[], str]]] = [
        ("signature", "Ask who gave it to you, and for their public key.", lambda: _check_key(folder, public_key)),
        ("manifest", "Fetch the archive again.", lambda: _check_manifest(folder)),
        ("gate", "Never load this folder.", lambda: _check_gate(folder)),
        ("documents", "Fetch the archive again.", lambda: _check_documents(folder)),
        ("verification", "Train again.", lambda: _check_verification(folder)),
    ]
    if base is not None:
        checks.append(("base", "Load it on the base that its card names.", lambda: _check_base(folder, base)))
    return [_run(name, check, remedy) for name, remedy, check in checks]


def _run(name: str, check: Callable[[], str], remedy: str) -> Check:
    try:
        return Check(name=name, result=Result.PASSED, message=check())
    except (ConfigurationError, ModelError) as error:  # of what it was to be compared with
        return Check(name=name, result=Result.UNKNOWN, message=error.message, remedy=error.remedy)
    except VerificationError as error:
        return Check(name=name, result=Result.FAILED, message=error.message, remedy=error.remedy or remedy)
    except FileNotFoundError as error:
        message = f"{Path(error.filename).name} is missing."
        return Check(name=name, result=Result.FAILED, message=message, remedy=remedy)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:  # a file of any content
        message = f"A file cannot be read: {type(error).__name__}."
        return Check(name=name, result=Result.FAILED, message=message, remedy=remedy)


def _check_key(folder: Path, public_key: Path | None) -> str:
    if public_key is None:
        raise ConfigurationError(
            "no_public_key",
            "There is no public key: without one, a signature proves nothing.",
            remedy="Name it with --public-key: signing-key.pub of the installation that trained the adapter.",
        )
    return f"It covers {check_signature(folder, public_key)} files, and was made with the key's private half."


def _check_manifest(folder: Path) -> str:
    if differences := find_differences(folder):
        named = "; ".join(differences[:_MAX_NAMED])
        more = f"; and {len(differences) - _MAX_NAMED} more" if len(differences) > _MAX_NAMED else ""
        raise VerificationError("manifest_differs", f"{named}{more}.")
    return f"{len(load_adapter_manifest(folder).files)} files are those of the manifest, and there is no other."


def _check_gate(folder: Path) -> str:
    shapes = check_adapter_folder(folder, base_model=_load_object(folder / BASE_FILE)["id"])
    return f"{len(shapes)} LoRA tensors, and nothing of the base."


def _check_documents(folder: Path) -> str:
    """Card and bill say the same as each other and as the files."""
    front = read_front_matter((folder / CARD_FILE).read_text(encoding="utf-8"))
    base = _load_object(folder / BASE_FILE)
    true: dict[str, Any] = {
        "job": load_adapter_manifest(folder).job,
        "base_model": base["id"],
        "base_fingerprint": base["fingerprint"],
        "weights_sha256": hash_file(folder / WEIGHTS_FILE),
    }
    card = {**front["medtune"], "base_model": front["base_model"]}
    bill = read_claims(folder / BILL_FILE)
    for name, claims in ((CARD_FILE, card), (BILL_FILE, bill)):
        for field, value in true.items():
            if claims.get(field) != value:
                message = f"{name} says {field} is {claims.get(field)}, the files say {value}."
                raise VerificationError("documents_disagree", message)
    if card.get("datasets") != bill["datasets"]:
        raise VerificationError("documents_disagree", f"{CARD_FILE} and {BILL_FILE} name different datasets.")
    return f"Card and bill of materials agree with the files: job {true['job']}, base {true['base_model']}."


def _check_verification(folder: Path) -> str:
    report = _load_object(folder / VERIFICATION_FILE)
    checks = report["checks"]
    if report.get("ok") is not True or not checks or not all(check["ok"] is True for check in checks):
        raise VerificationError("not_verified", f"{VERIFICATION_FILE} does not say that the adapter was verified.")
    if report["weights_sha256"] != hash_file(folder / WEIGHTS_FILE):
        raise VerificationError("not_verified", f"{VERIFICATION_FILE} is about other weights.")
    return f"Its run proved these weights by {len(checks)} checks."


def _check_base(folder: Path, base: Path) -> str:
    try:
        at_hand = compute_base_fingerprint(base)
    except (OSError, ValueError, KeyError) as error:
        message = f"{base} cannot be read as a base model: {type(error).__name__}."
        raise ModelError("base_unreadable", message, remedy="Name its folder: config.json and *.safetensors.") from None
    described = _load_object(folder / BASE_FILE)
    if described["fingerprint"] != at_hand:
        raise VerificationError(
            "other_base", f"It was trained on {described['id']}, {described['fingerprint']}; {base} is {at_hand}."
        )
    check_adapter_folder(folder, base_model=described["id"], base=base)
    return f"{base} is the base that it was trained on, and every tensor has its place there."


def _load_object(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise VerificationError("file_invalid", f"{path.name} holds no JSON object.")
    return content
