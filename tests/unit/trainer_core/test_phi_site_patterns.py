"""A site's own patterns: used when good, refused with the field and a remedy when not."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.models import Dataset
from jobs.status import PhiPolicy
from trainer_core.data.phi import site_patterns
from trainer_core.data.phi.file_scan import UnreadableRow, scan_file
from trainer_core.data.phi.replacement import Replacer
from trainer_core.data.phi.report import report_file
from trainer_core.data.phi.scanner import scan_text
from trainer_core.data.phi.site_patterns import load_site_patterns
from trainer_core.data.phi.strategy import Strategy
from trainer_core.data.phi.vault import create_key_file, load_keyring
from trainer_core.errors import ConfigurationError, DataError
from worker.checks import check_and_replace, check_file

GOOD = {"name": "ward_number", "class": "mrn", "regex": r"W\d{6}", "ignore_case": True}


def write(path: Path, *entries: Any) -> Path:
    path.write_text(json.dumps({"patterns": entries}), encoding="utf-8")
    return path


def test_a_pattern_finds_under_its_own_class_and_rule(tmp_path: Path) -> None:
    patterns = load_site_patterns(write(tmp_path / "p.json", GOOD))

    [finding] = scan_text("bed w004815 is free", patterns)

    assert (finding.phi_class, finding.rule, finding.start) == ("mrn", "site.ward_number", 4)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"regex": "("}, "regex"),
        ({"regex": ""}, "regex"),
        ({"regex": "x*"}, "regex"),
        ({"regex": "x" * 1_001}, "regex"),
        ({"regex": "(a+)+b"}, "regex"),
        ({"regex": r"(\d|\d\d)+x"}, "regex"),
        ({"regex": "(x|x)+y"}, "regex"),
        ({"regex": r"W(\d|\d)+X"}, "regex"),
        ({"regex": r"W((\d+))+X"}, "regex"),
        ({"regex": r"W(?:\d\d?){2,}X"}, "regex"),
        ({"name": "Ward Number"}, "name"),
        ({"class": None}, "class"),
        ({"ignore_case": "yes"}, "ignore_case"),
        ({"flags": "i"}, "flags"),
    ],
)
def test_a_bad_pattern_is_refused_with_its_field(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"patterns\[0\]\.{field}") as caught:
        load_site_patterns(write(tmp_path / "p.json", {**GOOD, **change}))

    assert caught.value.remedy


@pytest.mark.parametrize("content", ["{", "[]", '{"patterns": []}', '{"patterns": [1]}', "[" * 200_000, "1" * 5_000])
def test_a_file_that_holds_no_patterns_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(content)

    with pytest.raises(ConfigurationError, match=r"p\.json"):
        load_site_patterns(path)


@pytest.mark.parametrize("regex", [r"W(?:A|B)\d{2,6}", r"(?:[(|+]\d){3}", r"\(W+\)+", "(?i:w|ward)[ -]?[0-9]{4}"])
def test_a_pattern_that_repeats_no_choice_is_used(tmp_path: Path, regex: str) -> None:
    assert load_site_patterns(write(tmp_path / "p.json", {**GOOD, "regex": regex}))


def test_a_syntax_error_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('{"patterns": [\n  {"name": }\n]}')

    with pytest.raises(ConfigurationError, match="line 2"):
        load_site_patterns(path)


SLOW = {"name": "ward_line", "class": "mrn", "regex": r"\s*\s*\s*\s*[XYZ]$"}


def test_a_pattern_that_takes_too_long_leaves_the_row_unread_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_patterns, "MAX_SECONDS", 0.2)
    patterns = load_site_patterns(write(tmp_path / "p.json", SLOW))
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"instruction": text, "response": "Yes."}) + "\n" for text in (" " * 20_000, "Q"))
    )

    scanned = dict(scan_file(rows, patterns))

    assert isinstance(scanned[1], UnreadableRow)
    assert scanned[1].code == "site_pattern_too_slow"
    assert "`ward_line`" in scanned[1].message
    assert scanned[2] == []
    assert "`ward_line`" in (report_file(rows, patterns).first_unreadable or "")
    with pytest.raises(DataError, match="`ward_line`"):
        Replacer(site_patterns=patterns).replace_file(rows, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_patterns_and_texts_of_a_row_share_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these texts takes a tenth of it, and the next row has all of it again."""
    monkeypatch.setattr(site_patterns, "MAX_SECONDS", 1)
    patterns = load_site_patterns(write(tmp_path / "p.json", {**SLOW, "regex": r"\s*\s*\s*[XYZ]$"}))
    rows = tmp_path / "rows.jsonl"
    many = {f"note{index}": " " * 300 + "?" for index in range(400)}
    rows.write_text("".join(json.dumps({"instruction": "Q", "response": "Yes.", **more}) + "\n" for more in (many, {})))

    scanned = dict(scan_file(rows, patterns))

    assert isinstance(scanned[1], UnreadableRow)
    assert scanned[1].code == "site_pattern_too_slow"
    assert scanned[2] == []
    with pytest.raises(DataError, match="`ward_line`"):
        Replacer(site_patterns=patterns).replace_file(rows, tmp_path / "out.jsonl")


def test_rows_that_are_compared_after_a_replacement_keep_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where the patterns become too slow just then, the dataset is rejected by that name."""
    dataset = Dataset(tenant_id="a", id="ds_1", phi_strategy=Strategy.SAFE_HARBOR, sha256="", num_bytes=1)
    create_key_file(tmp_path / "key")
    keyring = load_keyring(tmp_path / "key")
    patterns = load_site_patterns(write(tmp_path / "p.json", GOOD))
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"instruction": "Who has bed W004815?", "response": "Nobody."}) + "\n")
    calls: list[int] = []
    report, replaced = check_and_replace(dataset, rows, keyring, patterns, lambda: calls.append(1))
    assert report["ok"]
    assert replaced is not None
    last, left = len(calls), []
    for path in (replaced.rows, replaced.vault):
        path.unlink()

    def keep() -> None:
        left.append(1)
        if len(left) == last:  # The comparison of the only row.
            monkeypatch.setattr(site_patterns, "MAX_SECONDS", 0)

    report, replaced = check_and_replace(dataset, rows, keyring, patterns, keep)

    assert replaced is None
    assert [finding["code"] for finding in report["findings"]] == ["site_pattern_too_slow"]


def test_a_dataset_with_rows_that_no_pattern_could_search_is_rejected_where_identifiers_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_patterns, "MAX_SECONDS", 0.2)
    patterns = load_site_patterns(write(tmp_path / "p.json", SLOW))
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"instruction": "Q" + " " * 20_000 + "?", "response": "Yes."}) + "\n")

    report = check_file(rows, PhiPolicy.REJECT, patterns, lambda: None)

    assert not report["ok"]
    assert report["findings"][0]["code"] == "rows_not_scanned"
    assert "`ward_line`" in report["findings"][0]["message"]
