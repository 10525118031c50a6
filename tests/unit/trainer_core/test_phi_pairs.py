"""Raw rows against clean ones: one value, one token, and nothing of the raw value left."""

import pytest

from trainer_core.data.phi.pairs import check_pairs
from trainer_core.data.phi.replacement import Replacer
from trainer_core.data.phi.strategy import Strategy
from trainer_core.data.phi.vault import Keyring, VaultKey

RAW = "Patient: John Miller, spouse: Mary Johnson. Miller, MRN: 00481516; Miller went."


def check(raw: list[str], clean: list[str], patient_key: str | None = None) -> list[tuple[int, str]]:
    pairs = [({"instruction": r, "p": "x"}, {"instruction": c, "p": "x"}) for r, c in zip(raw, clean, strict=True)]
    return [(finding.row, finding.rule) for finding in check_pairs(pairs, patient_key)]


@pytest.mark.parametrize(
    ("clean", "rules"),
    [
        ("Patient: [PATIENT_1], spouse: [PATIENT_2]. [PATIENT_1], MRN: [MRN_1]; [PATIENT_1] went.", []),
        ("Patient: [NAME_1], spouse: [NAME_2]. [NAME_3], MRN: [MRN_1]; [NAME_3] went.", []),
        ("Patient: [PATIENT_1], spouse: [PATIENT_2]. [PATIENT_1], MRN: [MRN_1]; [PATIENT_4] went.", ["PHI013"]),
        ("Patient: [PATIENT_1], spouse: [PATIENT_1]. [PATIENT_1], MRN: [MRN_1]; [PATIENT_1] went.", ["PHI014"]),
        ("Patient: [PATIENT_1], spouse: Mary Johnson. [PATIENT_1], MRN: [MRN_1]; [PATIENT_1] went.", ["PHI001"]),
        ("Patient: Ada Weatherby, spouse: Eve Kessler. Kessler, MRN: [MRN_1]; Kessler went.", []),
        ("Patient: Mary Johnson, spouse: [PATIENT_2]. [PATIENT_1], MRN: [MRN_1]; [PATIENT_1] went.", ["PHI020"]),
        ("Something else", []),
    ],
)
def test_faults_of_a_replacement_are_found(clean: str, rules: list[str]) -> None:
    assert check([RAW], [clean]) == [(1, rule) for rule in rules]


def test_a_patients_rows_are_one_scope_and_rows_are_scopes_without_a_key() -> None:
    raw = ["MRN: 00481516", "MRN: 00481516", "MRN: 00481517"]
    clean = ["MRN: [MRN_1]", "MRN: [MRN_2]", "MRN: [MRN_2]"]

    assert check(raw, clean) == []
    assert check(raw, clean, "p") == [(2, "PHI013"), (3, "PHI014")]


@pytest.mark.parametrize("patient_key", [None, "patient"])
@pytest.mark.parametrize("strategy", list(Strategy))
def test_our_own_replacement_has_none(strategy: Strategy, patient_key: str | None) -> None:
    raw = [
        {"patient": f"P-{index % 3:04}", "instruction": f"{RAW} Call (617) 555-01{index:02}.", "response": "aged 93"}
        for index in range(20)
    ]
    keyring = Keyring([VaultKey(1, bytes(32))])

    clean, _ = Replacer(strategy, patient_key=patient_key, keyring=keyring).replace_rows(raw)

    pairs = list(zip(raw, clean, strict=True))
    assert list(check_pairs(pairs, patient_key)) == []
