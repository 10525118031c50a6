"""Base models are checked, registered, and fetched from a hub on this machine by the real client."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cli.serve import find_free_port
from jobs.errors import Conflict, InvalidRequest
from jobs.model_registry import add_model, find_problems, get_model, list_models, pull_model
from jobs.models_file import ModelEntry, append_entry
from jobs.settings import Settings
from tests.factories import create_model_folder, write_weights
from tests.hub_server import COMMIT, Hub, serve_hub
from tests.unit.trainer_core.shapes import LLAMA_31_8B, list_llama_shapes

WRITTEN = '# Ours.\n[[model]]\nid = "first"  # The first.\nsource = "org/first"\n'


@pytest.fixture
def registry(tmp_path: Path) -> Settings:
    """With a file that somebody wrote."""
    (tmp_path / "models.toml").write_text(WRITTEN)
    return Settings(home=tmp_path / "home", models_file=tmp_path / "models.toml")


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = create_model_folder(tmp_path / "base", max_position_embeddings=4096)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    return folder


@pytest.fixture
def hub(model_folder: Path) -> Iterator[Hub]:
    """With what a repository has beside the model."""
    (model_folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (model_folder / "modeling_own.py").write_text("raise SystemExit\n")
    (model_folder / "onnx").mkdir()
    (model_folder / "onnx" / "config.json").write_text("{}")
    with serve_hub("org/base", model_folder) as server:
        yield server


def run(settings: Settings, *arguments: object, endpoint: str = "") -> subprocess.CompletedProcess[str]:
    """`medtune models`."""
    environment = {
        **os.environ,
        "MEDTUNE_HOME": str(settings.home),
        "MEDTUNE_MODELS_FILE": str(settings.models_file or ""),
        "HF_ENDPOINT": endpoint or f"http://127.0.0.1:{find_free_port('127.0.0.1')}",
        "HF_HOME": str(settings.home / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "COLUMNS": "300",
    }
    command = [sys.executable, "-m", "cli.main", "models", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


# --- The file ---


def test_an_entry_is_added_below_what_people_wrote(registry: Settings, model_folder: Path) -> None:
    assert registry.models_file is not None
    registry.models_file.chmod(0o640)
    template = "{% for m in messages %}\n'\"\\\x7f é😀{% endfor %}"

    added = add_model(registry, ModelEntry(id="b", source=str(model_folder), chat_template=template))

    text = registry.models_file.read_text()
    assert text.startswith(WRITTEN)
    assert [(m.id, m.chat_template) for m in list_models(registry)] == [("b", template), ("first", None)]
    assert (added.digest or "").startswith("sha256:")
    assert registry.models_file.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in registry.models_file.parent.glob(".*")] == []


def test_of_many_at_once_each_is_added(registry: Settings) -> None:
    assert registry.models_file is not None
    file = registry.models_file
    entries = [ModelEntry(id=f"m{number}", source="org/m", revision=COMMIT) for number in range(20)]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda entry: append_entry(file, entry), entries))

    assert {model.id for model in list_models(registry)} == {"first", *(entry.id for entry in entries)}


@pytest.mark.parametrize(
    ("text", "id_", "code"),
    [
        (WRITTEN, "first", "model_exists"),
        ('model = [{id = "x", source = "org/x"}]\n', "b", "models_file_not_appendable"),
        ("[[model", "b", "models_file_invalid"),
    ],
)
def test_what_cannot_be_added_leaves_the_file_as_it_was(registry: Settings, text: str, id_: str, code: str) -> None:
    assert registry.models_file is not None
    registry.models_file.write_text(text)

    with pytest.raises(Conflict) as refused:
        add_model(registry, ModelEntry(id=id_, source="org/b", revision=COMMIT))

    assert refused.value.code == code
    assert refused.value.details["remedy"]
    assert registry.models_file.read_text() == text


def test_a_folders_name_stays_that_folders(registry: Settings, model_folder: Path) -> None:
    assert registry.models_dir is not None
    own = create_model_folder(registry.models_dir / "tiny")

    with pytest.raises(Conflict, match="'tiny'"):
        add_model(registry, ModelEntry(id="tiny", source=str(model_folder)))
    pinned = add_model(registry, ModelEntry(id="tiny", source=str(own)))

    assert pinned.digest is not None


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_a_registered_folder_that_changed_is_refused(registry: Settings, model_folder: Path, name: str) -> None:
    add_model(registry, ModelEntry(id="b", source=str(model_folder)))
    assert get_model(registry, "b").id == "b"
    content = (model_folder / name).read_bytes()

    (model_folder / name).write_bytes(content.replace(b"}", b" }", 1) if b"{" in content[:2] else content[:-1] + b"\1")

    [problem] = find_problems(next(model for model in list_models(registry) if model.id == "b"))
    assert problem.code == "model_changed"
    with pytest.raises(InvalidRequest, match="not those that were registered"):
        get_model(registry, "b")


def test_pickles_are_not_registered(registry: Settings, model_folder: Path) -> None:
    (model_folder / "model.safetensors").rename(model_folder / "pytorch_model.bin")

    with pytest.raises(InvalidRequest) as refused:
        add_model(registry, ModelEntry(id="b", source=str(model_folder)))

    assert refused.value.code == "model_weights_pickle"


# --- The command line ---


def test_check_says_how_a_model_can_be_trained_and_in_how_much_memory(registry: Settings, tmp_path: Path) -> None:
    folder = create_model_folder(tmp_path / "large", **LLAMA_31_8B, auto_map={"AutoModel": "own.Model"})
    write_weights(folder / "model.safetensors", list_llama_shapes(LLAMA_31_8B))

    told = run(registry, "check", folder, "--json")
    report = json.loads(told.stdout)
    people = run(registry, "check", folder)

    assert (told.returncode, people.returncode) == (0, 0)
    assert report["num_parameters"] == 8_030_261_248
    assert {note["code"] for note in report["notes"]} == {"no_chat_template", "model_names_code"}
    lora, eight, four = report["methods"]
    assert [lora["name"], eight["name"], four["name"]] == ["lora", "lora-8bit", "lora-4bit"]
    assert 16e9 < lora["least_bytes"] < 24 * 2**30
    assert 5e9 < four["least_bytes"] < eight["least_bytes"] < lora["least_bytes"]
    fits = {card["name"]: card["peak_bytes"] for card in lora["cards"]}
    assert fits["16 GiB card"] is None
    assert fits["80 GiB card"] <= 80 * 2**30
    assert "lora-4bit" in people.stdout
    assert "did not trust: it never runs" in people.stdout


def test_check_says_why_a_model_cannot_be_trained(registry: Settings, model_folder: Path) -> None:
    (model_folder / "tokenizer.json").unlink()

    told = run(registry, "check", model_folder)

    assert told.returncode == 1
    assert "model_tokenizer_missing: The folder has no tokenizer. -> Copy" in told.stdout


def test_a_hubs_model_is_pinned_pulled_and_trained_from_its_folder(registry: Settings, hub: Hub) -> None:
    added = run(registry, "add", "b", "org/base", "--chat-template", "alpaca", endpoint=hub.url)
    pulled = run(registry, "pull", "b", endpoint=hub.url)
    pull_model(registry, "b")  # What is there is not fetched again; here there is no hub.
    model = get_model(registry, "b")

    assert (added.returncode, added.stderr) == (0, "")
    assert COMMIT in added.stdout
    assert "medtune models pull b" in added.stdout
    assert pulled.returncode == 0, pulled.stderr
    assert "can be trained" in pulled.stdout
    assert (model.revision, model.chat_template) == (COMMIT, "alpaca")
    folder = Path(model.source)
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in folder.iterdir()} == wanted
    assert all((folder / name).read_bytes() == (hub.folder / name).read_bytes() for name in wanted)
    assert [path.name for path in folder.parent.iterdir()] == [COMMIT]
    assert {path.split("/")[1] for path in hub.asked} == {"api", "org"}
    assert [path for path in hub.asked if path.startswith("/api/") and "/models/" not in path] == []  # No telemetry.


def test_code_comes_only_with_a_model_whose_code_the_operator_trusts(registry: Settings, hub: Hub) -> None:
    add_model(registry, ModelEntry(id="b", source="org/base", revision=COMMIT, trust_remote_code=True))

    pulled = run(registry, "pull", "b", endpoint=hub.url)

    assert pulled.returncode == 0, pulled.stderr
    assert (Path(get_model(registry, "b").source) / "modeling_own.py").is_file()


def test_a_file_that_is_not_what_the_hub_says_leaves_nothing(registry: Settings, hub: Hub) -> None:
    hub.broken.add("model.safetensors")
    add_model(registry, ModelEntry(id="b", source="org/base", revision=COMMIT))

    pulled = run(registry, "pull", "b", endpoint=hub.url)

    assert pulled.returncode == 1
    assert "model_files_damaged" in pulled.stderr
    assert "Traceback" not in pulled.stderr
    assert registry.models_dir is not None
    assert [path for path in registry.models_dir.rglob("*") if path.is_file()] == []


def test_without_a_hub_a_commit_can_be_registered_and_the_rest_says_what_to_do(registry: Settings) -> None:
    branch = run(registry, "add", "b", "org/base", "--revision", "main")
    commit = run(registry, "add", "b", "org/base", "--revision", COMMIT)
    pulled = run(registry, "pull", "b")

    assert (branch.returncode, commit.returncode, pulled.returncode) == (1, 0, 1)
    assert "Give the full commit" in branch.stderr
    assert "HF_ENDPOINT" in pulled.stderr
    assert "Traceback" not in branch.stderr + pulled.stderr


def test_what_the_hub_does_not_have_is_said_so(registry: Settings, hub: Hub) -> None:
    for path in hub.folder.glob("*.safetensors"):
        path.unlink()

    pickled = run(registry, "add", "b", "org/base", endpoint=hub.url)
    absent = run(registry, "add", "b", "org/absent", endpoint=hub.url)
    revision = run(registry, "add", "b", "org/base", "--revision", "v9", endpoint=hub.url)

    codes = ("model_weights_pickle", "source_not_found", "revision_not_found")
    for code, told in zip(codes, (pickled, absent, revision), strict=True):
        assert (told.returncode, code in told.stderr) == (1, True), told.stderr
    assert [model.id for model in list_models(registry)] == ["first"]
