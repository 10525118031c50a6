"""`signature.sig`: who vouches for an adapter's folder, by an elliptic key and without network. Torch-free.

It is a Sigstore bundle with an in-toto statement over the sha256 of every file but itself, as `model_signing` (OpenSSF)
writes and reads it, so that other tools can check it too. What that library passes and this module does not: files that
the statement itself says to ignore, and bytes of the signature's file that nothing signs.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from trainer_core.adapters.manifest import SIGNATURE_FILE, hash_file, list_files
from trainer_core.errors import ConfigurationError, VerificationError

_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_MAX_SIGNATURE_BYTES = 4_000_000


def create_private_key() -> str:
    """A new P-256 key, as PEM without a password."""
    key = ec.generate_private_key(ec.SECP256R1())
    encoding, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
    return key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, no_password).decode()


def load_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Raises ConfigurationError."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except PermissionError:
        remedy = f"Let the worker's user own it: chown USER {path.name}"
        raise ConfigurationError("signing_key_invalid", f"{path.name} may not be read.", remedy=remedy) from None
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _refuse_key(path, f"cannot be read as a private key: {_shorten(error)}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
        raise _refuse_key(path, "is no elliptic key of the curves P-256, P-384 or P-521")
    return key


def load_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Raises ConfigurationError."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise _refuse_key(path, f"cannot be read as a public key: {_shorten(error)}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise _refuse_key(path, "is no elliptic key of the curves P-256, P-384 or P-521")
    return key


def build_public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def sign_folder(folder: Path, private_key: Path) -> None:
    """Write signature.sig over every other file of the folder. Raises ConfigurationError."""
    from model_signing import signing  # half a second, which only those pay who sign or verify

    load_private_key(private_key)
    config = signing.Config().use_elliptic_key_signer(private_key=private_key)
    config.set_hashing_config(_build_hashing()).sign(folder, folder / SIGNATURE_FILE)


def check_signature(folder: Path, public_key: Path) -> int:
    """How many files it covers. Raises VerificationError, and ConfigurationError for a file that is no public key."""
    from model_signing import verifying  # half a second, which only those pay who sign or verify

    key = load_public_key(public_key)
    list_files(folder)  # refuses what could not be read to its end
    bundle = _read_bundle(folder / SIGNATURE_FILE)
    signer = bundle["verificationMaterial"]["publicKey"]["hint"]
    fingerprint = hashlib.sha256(build_public_pem(key)).hexdigest()
    if signer != fingerprint:
        raise _refuse(f"It was made with another key: {signer[:16]}, not {fingerprint[:16]}.")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
        config.set_hashing_config(_build_hashing()).verify(folder, folder / SIGNATURE_FILE)
    except Exception as error:  # whatever a broken file makes the library raise, the signature does not hold
        raise _refuse(f"It does not hold: {_shorten(error) or 'the key did not sign this'}.") from None
    return _check_coverage(folder, bundle)


def _build_hashing() -> Any:
    from model_signing import hashing

    return hashing.Config().set_ignored_paths(paths=[SIGNATURE_FILE], ignore_git_paths=False)


def _read_bundle(path: Path) -> dict[str, Any]:
    """Refused unless it says nothing but what a signature needs: the rest is signed by nobody."""
    try:
        if path.is_symlink() or path.stat().st_size > _MAX_SIGNATURE_BYTES:
            raise _refuse("It is a link, or larger than a signature can be.")
        bundle = json.loads(path.read_bytes())
        envelope = bundle["dsseEnvelope"]
        payload, [signature] = base64.b64decode(envelope["payload"], validate=True), envelope["signatures"]
        raw_signature = base64.b64decode(signature["sig"], validate=True)
        hint = bundle["verificationMaterial"]["publicKey"]["hint"]
    except FileNotFoundError:
        raise _refuse("There is none.") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _refuse(f"It cannot be read: {type(error).__name__}.") from None
    plain = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": base64.b64encode(raw_signature).decode(), "keyid": ""}],
        },
    }
    if bundle != plain or type(hint) is not str:
        raise _refuse("It carries what no signature of an adapter has.")
    return plain


def _check_coverage(folder: Path, bundle: dict[str, Any]) -> int:
    """The statement is its signer's, by now; but it must be about every file."""
    predicate = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))["predicate"]
    signed = {resource["name"]: (resource["algorithm"], resource["digest"]) for resource in predicate["resources"]}
    there = {name: ("sha256", hash_file(folder / name)) for name in list_files(folder)}
    if uncovered := sorted(there.keys() - signed.keys()):
        raise _refuse(f"It does not cover {', '.join(uncovered)}.")
    if signed != there:
        raise _refuse("The files are not those that were signed.")
    return len(signed)


def _refuse(message: str) -> VerificationError:
    return VerificationError("signature_invalid", message)


def _refuse_key(path: Path, problem: str) -> ConfigurationError:
    command = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out signing-key.pem"
    remedy = f"Put the right file there, or make a key with: {command}"
    return ConfigurationError("signing_key_invalid", f"{path.name} {problem}.", remedy=remedy)


def _shorten(error: Exception) -> str:
    return (error.strerror or "") if isinstance(error, OSError) else str(error).split("\n", 1)[0][:200].rstrip(".")
