"""An adapter's folder proves itself, until anything about it is changed."""

import base64
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.adapters import create_adapter, create_keys
from tests.factories import create_model_folder
from trainer_core.adapters.manifest import REQUIRED_FILES, hash_file, list_files
from trainer_core.adapters.proof import Result, prove_adapter
from trainer_core.adapters.signature import sign_folder

FILES = [*REQUIRED_FILES, "manifest.json", "signature.sig"]
FLIPS = 12
"""In each file: the first byte, the last, and some between."""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two signed adapters and two keys; only copies of them are changed."""
    folder = tmp_path_factory.mktemp("adapters")
    private, _ = create_keys(folder)
    create_keys(folder, "another")
    create_adapter(folder / "adapter", private)
    create_adapter(folder / "sibling", private, state="6" * 64)
    return folder


@pytest.fixture
def adapter(workshop: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(workshop / "adapter", tmp_path / "adapter"))


@pytest.fixture
def prove(workshop: Path) -> Callable[..., dict[str, Result]]:
    def run(
        folder: Path, public_key: Path | None = workshop / "key.pub", base: Path | None = None
    ) -> dict[str, Result]:
        return {check.name: check.result for check in prove_adapter(folder, public_key=public_key, base=base)}

    return run


Prove = Callable[..., dict[str, Result]]


def list_failed(results: dict[str, Result]) -> set[str]:
    return {name for name, result in results.items() if result == Result.FAILED}


def change_json(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_what_a_worker_made_is_proven(adapter: Path, prove: Prove, workshop: Path) -> None:
    names = {"signature", "manifest", "gate", "documents", "verification", "base"}

    assert prove(adapter, base=workshop / "base") == dict.fromkeys(names, Result.PASSED)


def test_the_librarys_own_command_accepts_the_signature_as_the_page_says(workshop: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "adapters.md").read_text()
    [command] = [line for line in page.splitlines() if line.startswith("model_signing verify")]
    words = command.replace("signing-key.pub", "key.pub").split()[1:]

    result = subprocess.run(
        [sys.executable, "-m", "model_signing", *words], cwd=workshop, capture_output=True, text=True, check=False
    )

    assert result.returncode == 0, result.stdout + result.stderr


def test_it_holds_every_file_that_an_adapter_has(adapter: Path) -> None:
    assert sorted(path.name for path in adapter.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_noticed_by_signature_and_manifest(adapter: Path, prove: Prove, name: str) -> None:
    path = adapter / name
    content = path.read_bytes()
    chosen = random.Random(name).sample(range(len(content)), min(FLIPS, len(content)) - 2)
    for position in {0, len(content) - 1, *chosen}:
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        failed = list_failed(prove(adapter))
        assert "signature" in failed, position
        assert "manifest" in failed or name in ("manifest.json", "signature.sig"), position


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_noticed(adapter: Path, prove: Prove, name: str) -> None:
    (adapter / name).unlink()

    failed = list_failed(prove(adapter))

    assert "signature" in failed
    assert "manifest" in failed or name == "signature.sig"


@pytest.mark.parametrize("name", ["notes.md", ".gitignore", "more/notes.md", "signature2.sig"])
def test_a_file_more_is_noticed(adapter: Path, prove: Prove, name: str) -> None:
    (adapter / name).parent.mkdir(exist_ok=True)
    (adapter / name).write_text("x")

    assert {"signature", "manifest"} <= list_failed(prove(adapter))


def test_a_link_or_a_pipe_is_refused_and_never_read(adapter: Path, prove: Prove) -> None:
    os.mkfifo(adapter / "pipe.json")

    assert {"signature", "manifest", "gate"} <= list_failed(prove(adapter))

    (adapter / "pipe.json").unlink()
    (adapter / "README.md").rename(adapter.parent / "card")
    (adapter / "README.md").symlink_to(adapter.parent / "card")

    assert {"signature", "manifest", "gate"} <= list_failed(prove(adapter))


def test_the_signature_of_another_adapter_is_refused(adapter: Path, prove: Prove, workshop: Path) -> None:
    shutil.copy(workshop / "sibling" / "signature.sig", adapter)

    assert list_failed(prove(adapter)) == {"signature"}


def test_another_key_is_refused(adapter: Path, prove: Prove, workshop: Path) -> None:
    assert list_failed(prove(adapter, public_key=workshop / "another.pub")) == {"signature"}


def test_a_folder_that_another_key_signed_again_is_refused(adapter: Path, prove: Prove, workshop: Path) -> None:
    sign_folder(adapter, workshop / "another.pem")

    assert list_failed(prove(adapter)) == {"signature"}


def test_another_keys_signature_under_the_name_of_ours_is_refused(adapter: Path, prove: Prove, workshop: Path) -> None:
    def rename(bundle: Any) -> None:
        bundle["verificationMaterial"]["publicKey"]["hint"] = hint

    hint = json.loads((adapter / "signature.sig").read_text())["verificationMaterial"]["publicKey"]["hint"]
    sign_folder(adapter, workshop / "another.pem")
    change_json(adapter / "signature.sig", rename)

    assert list_failed(prove(adapter)) == {"signature"}


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_truncated_signature_is_refused(adapter: Path, prove: Prove, keep: int) -> None:
    path = adapter / "signature.sig"
    path.write_bytes(path.read_bytes()[:keep])

    assert list_failed(prove(adapter)) == {"signature"}


def test_a_signature_that_is_nested_without_end_is_refused(adapter: Path, prove: Prove) -> None:
    (adapter / "signature.sig").write_bytes(b"[" * 200_000)

    assert list_failed(prove(adapter)) == {"signature"}


def test_a_signature_that_covers_fewer_files_is_refused(adapter: Path, prove: Prove, workshop: Path) -> None:
    """It is made with the right key, over a folder that had one file less."""
    (adapter / "README.md").rename(workshop / "card")
    sign_folder(adapter, workshop / "key.pem")
    (workshop / "card").rename(adapter / "README.md")

    assert list_failed(prove(adapter)) == {"signature"}


def test_a_signature_that_says_itself_what_to_ignore_is_refused(adapter: Path, prove: Prove, workshop: Path) -> None:
    from model_signing import hashing, signing

    config = signing.Config().use_elliptic_key_signer(private_key=workshop / "key.pem")
    ignoring = hashing.Config().set_ignored_paths(paths=["signature.sig", "README.md"], ignore_git_paths=False)
    config.set_hashing_config(ignoring).sign(adapter, adapter / "signature.sig")

    assert list_failed(prove(adapter)) == {"signature"}


def test_a_signature_that_carries_more_is_refused(adapter: Path, prove: Prove) -> None:
    change_json(adapter / "signature.sig", lambda bundle: bundle.update(note=base64.b64encode(b"base").decode()))

    assert list_failed(prove(adapter)) == {"signature"}


def test_without_a_key_nothing_is_known_of_the_signature(adapter: Path, prove: Prove) -> None:
    results = prove(adapter, public_key=None)

    assert results.pop("signature") == Result.UNKNOWN
    assert set(results.values()) == {Result.PASSED}


@pytest.mark.parametrize("content", [b"", b"no key", bytes(100)])
def test_a_file_that_is_no_key_proves_nothing(adapter: Path, prove: Prove, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key.pub").write_bytes(content)

    assert prove(adapter, public_key=tmp_path / "key.pub")["signature"] == Result.UNKNOWN


def sign_again(adapter: Path, workshop: Path) -> None:
    """Whoever has the key can sign anything: what the documents say must still be true."""

    def enter(manifest: Any) -> None:
        for name in manifest["files"]:
            manifest["files"][name] = {"bytes": (adapter / name).stat().st_size, "sha256": hash_file(adapter / name)}

    change_json(adapter / "manifest.json", enter)
    sign_folder(adapter, workshop / "key.pem")


@pytest.mark.parametrize(
    ("name", "old", "new", "failed"),
    [
        ("README.md", '"base_fingerprint": "sha256:', '"base_fingerprint": "sha256:0', "documents"),
        ("README.md", 'base_model: "tiny"', 'base_model: "large"', "documents"),
        ("README.md", '"weights_sha256": "', '"weights_sha256": "0', "documents"),
        ("README.md", "1" * 64, "3" * 64, "documents"),
        ("README.md", "---\n", "", "documents"),
        ("bom.cdx.json", '"name": "tiny"', '"name": "large"', "documents"),
        ("bom.cdx.json", "2" * 64, "3" * 64, "documents"),
        ("bom.cdx.json", '"SHA-256"', '"SHA-1"', "documents"),
        ("bom.cdx.json", '"job_', '"jib_', "documents"),
        ("verification.json", '"ok": true', '"ok": false', "verification"),
        ("verification.json", '"weights_sha256": "', '"weights_sha256": "0', "verification"),
        ("verification.json", '"checks"', '"cheques"', "verification"),
        ("adapter_config.json", '"tiny"', '"large"', "gate"),
    ],
)
def test_documents_that_are_signed_and_wrong_are_refused(
    adapter: Path, prove: Prove, workshop: Path, name: str, old: str, new: str, failed: str
) -> None:
    text = (adapter / name).read_text()
    assert old in text
    (adapter / name).write_text(text.replace(old, new))
    sign_again(adapter, workshop)

    assert list_failed(prove(adapter)) == {failed}


def test_other_weights_under_the_documents_of_these_are_refused(adapter: Path, prove: Prove, workshop: Path) -> None:
    shutil.copy(workshop / "sibling" / "adapter_model.safetensors", adapter)
    sign_again(adapter, workshop)

    assert list_failed(prove(adapter)) == {"documents", "verification"}


@pytest.mark.parametrize("content", ["", "[]", "null", "{}", "[" * 100_000, "\x00"])
@pytest.mark.parametrize("name", [name for name in FILES if name.endswith((".json", ".sig"))])
def test_no_content_of_a_file_ends_in_a_traceback(adapter: Path, prove: Prove, name: str, content: str) -> None:
    (adapter / name).write_text(content)

    assert "signature" in list_failed(prove(adapter))


def test_another_base_is_noticed(adapter: Path, prove: Prove, tmp_path: Path) -> None:
    other = create_model_folder(tmp_path / "other", num_hidden_layers=2)

    assert list_failed(prove(adapter, base=other)) == {"base"}


def test_a_folder_that_is_no_base_tells_nothing(adapter: Path, prove: Prove, tmp_path: Path) -> None:
    assert prove(adapter, base=tmp_path)["base"] == Result.UNKNOWN


def test_an_adapter_says_nothing_of_the_machine_that_made_it(adapter: Path, workshop: Path) -> None:
    for name in [*list_files(adapter), "signature.sig"]:
        content = (adapter / name).read_bytes()
        if name == "signature.sig":
            content = base64.b64decode(json.loads(content)["dsseEnvelope"]["payload"])
        for private in (workshop, Path.home(), Path.cwd()):
            assert str(private).encode() not in content, name
