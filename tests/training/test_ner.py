"""A token classifier in a folder looks beside the rules, in a process of its own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from cli.main import build_app
from jobs.models import Dataset
from jobs.status import PhiPolicy
from trainer_core.data.phi.ner import LABELS_FILE, NerModel
from trainer_core.data.phi.strategy import Strategy
from trainer_core.data.phi.vault import create_key_file, load_keyring
from trainer_core.errors import ConfigurationError
from worker.checks import check_and_replace, check_file

_KNOWN = "zorvan quillberg came again to the ward after lunch and slept well ( ) . , -"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *_KNOWN.split()]
LABELS = ["O", "B-PATIENT", "I-PATIENT"]
LONGEST = 32
ROW = {"instruction": "zorvan quillberg came again", "response": "Honey."}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that has learnt that these two words are a person."""
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=LONGEST, id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )  # fmt: skip
    model = BertForTokenClassification(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        inputs = torch.randint(len(WORDS), (16, 12))
        labels = torch.where(inputs == 4, 1, torch.where(inputs == 5, 2, 0))
        optimizer.zero_grad()
        model(input_ids=inputs, labels=labels).loss.backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("ner")
    model.save_pretrained(path)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")  # type: ignore[no-untyped-call]
    fast.save_pretrained(path)
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "model")


def write(path: Path, *rows: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def scan(path: Path, *options: str) -> Result:
    return CliRunner().invoke(build_app("scan"), ["scan", str(path), "--json", *options])


def test_a_model_finds_the_name_that_no_rule_does(folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROW)

    assert json.loads(scan(path).stdout)["findings"] == []
    assert json.loads(scan(path, "--ner", str(folder)).stdout)["findings"] == [
        {"row": 1, "field": "instruction", "start": 0, "end": 16, "class": "name", "rule": "NER"}
    ]


def test_every_mention_in_a_long_text_is_found_at_its_place(folder: Path) -> None:
    unit = "after lunch, the ward slept well - zorvan came to the ward and slept. "
    text = unit * 40

    with NerModel(folder) as ner:
        [found] = ner.find([text])

    starts = [index * len(unit) + unit.index("zorvan") for index in range(40)]
    assert [(f.start, f.end) for f in found] == [(start, start + 6) for start in starts]


def test_odd_texts_are_read(folder: Path) -> None:
    texts = ["", "  \n", "\ud83d zorvan", "\u200bzorvan\U0001f600", "zorvan" * 400]

    with NerModel(folder) as ner:
        found = ner.find(texts)

    assert [len(findings) for findings in found[:3]] == [0, 0, 1]
    assert texts[2][found[2][0].start : found[2][0].end] == "zorvan"


def test_what_rules_found_stays_and_placeholders_are_no_names(folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"instruction": "Dr. zorvan came to [PATIENT_1]", "response": "Honey."})

    rules = json.loads(scan(path).stdout)["findings"]

    assert rules
    assert json.loads(scan(path, "--ner", str(folder)).stdout)["findings"] == rules


def test_the_check_of_a_dataset_rejects_what_the_model_found(folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROW)

    with NerModel(folder) as ner:
        report = check_file(path, PhiPolicy.REJECT, [], lambda: None, ner)

    assert (report["ok"], report["phi"]["classes"]) == (False, {"name": 1})


def test_what_a_scan_finds_is_replaced_by_any_number_of_workers_alike(folder: Path, tmp_path: Path) -> None:
    visit = {"instruction": "Dr. Smith saw zorvan, then quillberg", "response": "zorvan slept (quillberg) again"}
    path = write(tmp_path / "rows.jsonl", *[ROW, visit] * 40)  # More than one batch.
    outs = [tmp_path / f"{workers}.jsonl" for workers in (1, 2)]
    for out, workers in zip(outs, ("1", "2"), strict=True):
        options = ["--ner", str(folder), "--workers", workers]
        result = CliRunner().invoke(build_app("replace"), ["replace", str(path), str(out), *options])
        assert result.exit_code == 0, result.output

    first, second = (json.loads(line) for line in outs[0].read_text().splitlines()[:2])
    assert first == {"instruction": "[PATIENT_1] came again", "response": "Honey."}
    assert second == {
        "instruction": "Dr. [PATIENT_1] saw [PATIENT_2], then [PATIENT_3]",
        "response": "[PATIENT_2] slept ([PATIENT_3]) again",
    }
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert json.loads(scan(outs[0], "--ner", str(folder)).stdout)["findings"] == []


def test_the_policy_replace_leaves_nothing_that_the_model_found(folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROW)
    create_key_file(key := tmp_path / "key.txt")
    dataset = Dataset(phi_strategy=Strategy.SAFE_HARBOR, patient_key=None, sha256="", num_bytes=1)

    with NerModel(folder) as ner:
        report, replaced = check_and_replace(dataset, path, load_keyring(key), [], lambda: None, ner)

    assert replaced is not None
    assert json.loads(replaced.rows.read_text())["instruction"] == "[PATIENT_1] came again"
    assert (report["replacement"]["replaced"], report["phi"]["num_findings"]) == ({"name": 1}, 0)


def test_an_age_that_is_no_identifier_stays(copy: Path) -> None:
    """Models call every age one; those up to 89 are none, and `[AGE_OVER_89]` would be wrong in their place."""
    (copy / LABELS_FILE).write_text('{"PATIENT": "age"}')
    tokenizer = (copy / "tokenizer.json").read_text()
    (copy / "tokenizer.json").write_text(tokenizer.replace('"zorvan"', '"45"').replace('"quillberg"', '"95"'))

    with NerModel(copy) as ner:
        young, old = ner.find(["the 45 came", "the 95 came"])

    assert young == []
    assert [(finding.start, finding.end, finding.phi_class) for finding in old] == [(4, 6, "age")]


def test_a_label_has_the_class_that_the_folder_says(copy: Path) -> None:
    (copy / LABELS_FILE).write_text('{"PATIENT": "mrn"}')

    with NerModel(copy) as ner:
        assert [finding.phi_class for finding in ner.find(["zorvan came"])[0]] == ["mrn"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "config.json"),
        ("model.safetensors", None, "no *.safetensors"),
        ("model.safetensors", "broken", "cannot be loaded"),
        ("tokenizer.json", None, "tokenizer"),
        ("config.json", '{"architectures": ["LlamaForCausalLM"]}', "ForTokenClassification"),
        (LABELS_FILE, '{"PATIENT": "person"}', "no such class"),
        (LABELS_FILE, '{"PATIENT": null}', "none of its labels"),
        (LABELS_FILE, "[]", "no JSON object"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_with_a_remedy(
    copy: Path, tmp_path: Path, file: str, content: str | None, message: str
) -> None:
    if content is None:
        (copy / file).unlink()
    else:
        (copy / file).write_text(content)

    result = scan(write(tmp_path / "rows.jsonl", ROW), "--ner", str(copy))

    assert result.exit_code == 2
    assert message in result.output
    assert str(copy) in result.output


def test_weights_without_the_classifier_are_refused(copy: Path) -> None:
    BertForTokenClassification.from_pretrained(copy).bert.save_pretrained(copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(
        json.dumps({**config, "architectures": ["BertForTokenClassification"], "id2label": dict(enumerate(LABELS))})
    )

    with pytest.raises(ConfigurationError, match=r"the weights lack classifier"), NerModel(copy):
        pass


def test_a_model_that_dies_is_told_as_such(folder: Path) -> None:
    with NerModel(folder) as ner:
        ner._process.kill()
        ner._process.wait()

        with pytest.raises(ConfigurationError, match="its process ended"):
            ner.find(["zorvan"])


def test_a_worker_of_checks_does_not_start_with_a_folder_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDTUNE_PHI_NER_MODEL", str(tmp_path / "none"))
    monkeypatch.setenv("MEDTUNE_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    monkeypatch.setenv("MEDTUNE_REDIS_URL", "redis://127.0.0.1:1")

    result = CliRunner().invoke(build_app("worker"), ["worker", "--queue", "check"])

    assert result.exit_code != 0
    assert f"{tmp_path / 'none'}: is no folder. Name the folder of a token classifier" in " ".join(
        result.output.split()
    )


def test_the_scan_itself_imports_no_torch() -> None:
    code = "import sys, cli.scan, cli.replace, cli.daemons, worker.checks; print('torch' in sys.modules)"

    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
