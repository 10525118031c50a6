"""The vault says what a token stands for to whoever holds the key, and to nobody else."""

from pathlib import Path

import pytest

from trainer_core.data.phi.replacement import Replacer
from trainer_core.data.phi.strategy import Strategy
from trainer_core.data.phi.values import get_value
from trainer_core.data.phi.vault import (
    Keyring,
    VaultEntry,
    VaultKey,
    create_key_file,
    iter_vault_entries,
    load_keyring,
)
from trainer_core.errors import ConfigurationError

ROWS = [
    {"patient": "P-00017", "instruction": "Patient: John Smith. Mr. Smith, aged 93, MRN: 00481516", "response": "x"},
    {"patient": "P-00017", "instruction": "Mr. JOHN SMITH", "response": "x"},
    {"patient": "P-00018", "instruction": "Patient: John Smith", "response": "x"},
]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    create_key_file(path)
    return path


def replace(
    keyring: Keyring, strategy: Strategy = Strategy.SAFE_HARBOR, key: str | None = "patient"
) -> list[VaultEntry]:
    entries: list[VaultEntry] = []
    Replacer(strategy, patient_key=key, keyring=keyring).replace_rows(ROWS, entries.append)
    return entries


def test_every_value_of_a_scope_is_there_once_and_can_be_read(key_file: Path) -> None:
    keyring = load_keyring(key_file)

    entries = replace(keyring)

    assert [(entry.token, keyring.decrypt(entry)) for entry in entries] == [
        ("[MRN_1]", "P-00017"),
        ("[PATIENT_1]", "John Smith"),
        ("[PATIENT_1]", "Smith"),
        ("[MRN_2]", "00481516"),
        ("[MRN_1]", "P-00018"),
        ("[PATIENT_1]", "John Smith"),
    ]
    assert len({entry.scope for entry in entries}) == 2


def test_nothing_in_an_entry_tells_a_value_or_a_patient(key_file: Path) -> None:
    for entry in replace(load_keyring(key_file)):
        text = entry.model_dump_json()
        assert not any(word in text for word in ("John", "Smith", "481516", "P-0001", "p-0001"))


def test_equal_values_are_found_without_decrypting(key_file: Path) -> None:
    keyring = load_keyring(key_file)
    entries = replace(keyring)

    index = keyring.get_blind_index(keyring.hide_scope("p-00018"), "PATIENT", get_value("PATIENT", "SMITH, John"))

    assert [entry.blind_index == index for entry in entries] == [False] * 5 + [True]


def test_keyed_tokens_have_one_scope(key_file: Path) -> None:
    entries = replace(load_keyring(key_file), Strategy.EXPERT_DETERMINATION)

    assert {entry.scope for entry in entries} == {""}
    assert len(entries) == 5


def test_rows_are_scopes_without_a_patient_key(key_file: Path) -> None:
    assert {entry.scope for entry in replace(load_keyring(key_file), key=None)} == {"row:1", "row:2", "row:3"}


def test_another_key_and_a_changed_entry_are_refused(key_file: Path) -> None:
    keyring = load_keyring(key_file)
    entry = replace(keyring)[1]

    for broken, ring in [
        (entry, Keyring([VaultKey(1, bytes(32))])),
        (entry, Keyring([VaultKey(2, bytes(32))])),
        (entry.model_copy(update={"token": "[PATIENT_2]"}), keyring),
        (entry.model_copy(update={"nonce": "no"}), keyring),
    ]:
        with pytest.raises(ConfigurationError) as caught:
            ring.decrypt(broken)
        assert caught.value.code == "vault_key_wrong"


def test_a_newer_version_writes_and_the_older_still_reads(key_file: Path) -> None:
    old = replace(load_keyring(key_file))[1]
    key_file.write_text(key_file.read_text() + f"2 {'ab' * 32}\n")
    keyring = load_keyring(key_file)

    new = replace(keyring)[1]

    assert (old.key_version, new.key_version) == (1, 2)
    assert keyring.decrypt(old) == keyring.decrypt(new) == "John Smith"
    value = get_value("PATIENT", "John Smith")
    assert keyring.get_blind_index(old.scope, "PATIENT", value, version=1) == old.blind_index


def test_a_key_file_is_its_owners_alone(key_file: Path) -> None:
    assert key_file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        create_key_file(key_file)
    key_file.chmod(0o640)

    with pytest.raises(ConfigurationError, match="others may read") as caught:
        load_keyring(key_file)

    assert "chmod 600" in caught.value.remedy


@pytest.mark.parametrize("content", ["", "1 abc\n", "x", f"1 {'ab' * 32}\n1 {'cd' * 32}\n", "\xff"])
def test_a_key_file_that_holds_no_key_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_text(content)
    path.chmod(0o600)

    with pytest.raises(ConfigurationError) as caught:
        load_keyring(path)

    assert caught.value.code in ("vault_key_malformed", "vault_key_missing")


def test_a_key_file_that_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no key file"):
        load_keyring(tmp_path / "none")


def test_a_secret_of_another_length_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="32 bytes"):
        VaultKey(1, b"short")


def test_a_vault_needs_a_key_and_names_a_damaged_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="written with a key"):
        Replacer().replace_rows(ROWS, lambda _: None)
    (tmp_path / "vault").write_text("{}\n")

    with pytest.raises(ConfigurationError, match="line 1"):
        list(iter_vault_entries(tmp_path / "vault"))
