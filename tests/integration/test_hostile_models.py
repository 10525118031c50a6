"""Models, datasets and checkpoints that want to run code: none of it ever runs.

A folder is refused at submission where its files alone tell; else by the trainer, before a weight is loaded, and the
job fails as its user's. Each trap would make a folder, `ran`.
"""

import gzip
import io
import json
import os
import pickle
import secrets
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from cli.serve import Service
from jobs.status import Fault
from tests.factories import create_model_folder, upload_script
from tests.plain_client import Client, open_client
from trainer_core.checkpoints import write_folder, write_manifest
from trainer_core.data.templates import render
from trainer_core.demo_model import build_demo_model
from trainer_core.errors import describe
from trainer_core.model import load_base_model
from trainer_core.reporting import ErrorEvent
from trainer_core.run_dir import ModelSource, RunDir, RunSpec
from trainer_core.tokenizer import load_tokenizer
from trainer_core.train import _find_state
from worker.launcher import Exit
from worker.verdict import Fate, judge

DATA = Path(__file__).parents[2] / "examples" / "medical_qa.jsonl"

OWN_CODE = {
    "AutoConfig": "own_code.Config",
    "AutoModelForCausalLM": "own_code.Model",
    "AutoTokenizer": ["own_code.Tokenizer", "own_code.Tokenizer"],
}
LOADS = "loads"
"""It is a model all the same, and trains without the code that it brought."""


class Trap:
    """As a pickle: a call of mkdir."""

    def __init__(self, ran: Path) -> None:
        self._ran = str(ran)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self._ran,)


def change_json(path: Path, **changes: Any) -> None:
    """None takes a field out."""
    content = {**(json.loads(path.read_text()) if path.exists() else {}), **changes}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def name_own_architecture(folder: Path, _: Path) -> None:
    change_json(folder / "config.json", model_type="own", auto_map=OWN_CODE)


def name_no_architecture(folder: Path, _: Path) -> None:
    change_json(folder / "config.json", model_type=None, architectures=["Model"], auto_map=OWN_CODE)


def name_code_of_another_repository(folder: Path, _: Path) -> None:
    auto_map = {name: f"evil/repository--{value}" for name, value in OWN_CODE.items() if isinstance(value, str)}
    change_json(folder / "config.json", model_type="own", auto_map=auto_map)


def add_code_to_a_known_architecture(folder: Path, _: Path) -> None:
    change_json(folder / "config.json", auto_map=OWN_CODE)


def trust_itself(folder: Path, _: Path) -> None:
    trust = {"trust_remote_code": True, "auto_map": OWN_CODE}
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        change_json(folder / name, **trust)
    change_json(folder / "config.json", model_type="own")


def nest_its_code(folder: Path, _: Path) -> None:
    inner = {"model_type": "own", "auto_map": OWN_CODE, "trust_remote_code": True}
    change_json(folder / "config.json", text_config=inner, vision_config=inner)


def bring_a_tokenizer(folder: Path, _: Path) -> None:
    change_json(folder / "tokenizer_config.json", auto_map=OWN_CODE, tokenizer_class="OwnTokenizer")


def map_a_tokenizer(folder: Path, _: Path) -> None:
    change_json(folder / "tokenizer_config.json", auto_map=OWN_CODE["AutoTokenizer"])


def name_a_tokenizer_class(folder: Path, _: Path) -> None:
    change_json(folder / "tokenizer_config.json", tokenizer_class="own_code.Tokenizer")


def have_pickled_weights_only(folder: Path, ran: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Trap(ran)}, folder / "pytorch_model.bin")


def call_a_pickle_safetensors(folder: Path, ran: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap(ran)))


def index_a_pickle(folder: Path, ran: Path) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    torch.save({"lm_head.weight": Trap(ran)}, folder / "shard.bin")
    change_json(folder / "model.safetensors.index.json", metadata={}, weight_map={"lm_head.weight": "shard.bin"})


def index_a_pickle_elsewhere(folder: Path, ran: Path) -> None:
    """With good weights under the same name where the API looks."""
    torch.save({"lm_head.weight": Trap(ran)}, folder.parent / ".shard.bin")
    (folder / "model.safetensors").rename(folder / ".shard.bin")
    (folder / "x.safetensors").touch()
    change_json(folder / "model.safetensors.index.json", metadata={}, weight_map={"lm_head.weight": "../.shard.bin"})


def configure_a_pickle(folder: Path, ran: Path) -> None:
    """transformers prefers what config.json names, and takes this name although it was told to use safetensors."""
    torch.save({"lm_head.weight": Trap(ran)}, folder / "adapter_model.bin")
    change_json(folder / "config.json", transformers_weights="adapter_model.bin")


def embed_an_adapter(folder: Path, ran: Path) -> None:
    """transformers loads it with the model."""
    torch.save({"lm_head.weight": Trap(ran)}, folder / "adapter_model.bin")
    lora = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    change_json(folder / "adapter_config.json", base_model_name_or_path="x", **lora)


def leave_pickles_around(folder: Path, ran: Path) -> None:
    for name in ("training_args.bin", "optimizer.pt", "pytorch_model.bin", "rng_state.pth"):
        torch.save(Trap(ran), folder / name)
    (folder / ".metadata").write_bytes(pickle.dumps(Trap(ran)))


def bring_its_own_generation(folder: Path, _: Path) -> None:
    (folder / "custom_generate").mkdir()
    shutil.copy(folder / "own_code.py", folder / "custom_generate" / "generate.py")


def name_a_kernel(folder: Path, _: Path) -> None:
    """Machine code from a hub."""
    change_json(folder / "config.json", attn_implementation="evil/kernel")


def claim_to_be_quantised(folder: Path, _: Path) -> None:
    change_json(folder / "config.json", quantization_config={"quant_method": "own"})


@dataclass(frozen=True)
class Case:
    change: Callable[[Path, Path], None]
    submission: str | None
    """Its code there, or None: the API's files-only look finds nothing."""
    trainer: str
    """The trainer's code, or LOADS."""
    tokenizer: str = LOADS


CASES = (
    Case(name_own_architecture, None, "model_not_loadable"),
    Case(name_no_architecture, None, "model_not_loadable"),
    Case(name_code_of_another_repository, None, "model_not_loadable"),
    Case(add_code_to_a_known_architecture, None, LOADS),
    Case(trust_itself, None, "model_not_loadable"),
    Case(nest_its_code, None, "internal_error"),  # transformers takes this for a bug; so it is only not loaded
    Case(bring_a_tokenizer, None, LOADS, tokenizer="tokenizer_not_loadable"),
    Case(map_a_tokenizer, None, LOADS),
    Case(name_a_tokenizer_class, None, LOADS),
    Case(have_pickled_weights_only, "model_weights_pickle", "model_weights_pickle"),
    Case(call_a_pickle_safetensors, "model_files_damaged", "model_not_loadable"),
    Case(index_a_pickle, "model_weights_elsewhere", "model_weights_elsewhere"),
    Case(index_a_pickle_elsewhere, "model_weights_elsewhere", "model_weights_elsewhere"),
    Case(configure_a_pickle, "model_weights_elsewhere", "model_weights_elsewhere"),
    Case(embed_an_adapter, "model_holds_adapter", "model_holds_adapter"),
    Case(leave_pickles_around, None, LOADS),
    Case(bring_its_own_generation, None, LOADS),
    Case(name_a_kernel, None, "model_not_loadable"),
    Case(claim_to_be_quantised, "model_already_quantized", LOADS),
)


@pytest.fixture(scope="module")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that really loads: what a hostile one does to a good folder is all that can be wrong with it."""
    folder = tmp_path_factory.mktemp("model") / "demo"
    build_demo_model(folder, data=DATA, hidden_size=48, num_layers=1)
    return folder


@pytest.fixture(scope="module")
def dataset_id(service: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    with open_client(service.url, service.key) as client:
        return upload_script(client, tmp_path_factory.mktemp("rows"))


@pytest.fixture
def ran(tmp_path: Path) -> Iterator[Path]:
    """What a trap makes; it must never be there."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists()


@pytest.fixture
def model_folder(service: Service, demo_model: Path, ran: Path) -> Iterator[Path]:
    """A registered base model with code in it."""
    assert service.settings.models_dir is not None
    folder = service.settings.models_dir / f"hostile-{secrets.token_hex(4)}"
    shutil.copytree(demo_model, folder)
    code = f"import os\nos.mkdir({str(ran)!r})\n"
    # The rest are names that Python itself, or what it imports, looks for.
    for name in ("own_code", "__init__", "conftest", "sitecustomize", "torch", "transformers"):
        (folder / f"{name}.py").write_text(code)
    yield folder
    shutil.rmtree(folder)


def test_the_traps_are_real(tmp_path: Path) -> None:
    """Else nothing below would prove anything."""
    ran = tmp_path / "ran"
    pickle.loads(pickle.dumps(Trap(ran)))
    assert ran.is_dir()
    ran.rmdir()
    torch.save({"a": Trap(ran)}, tmp_path / "weights.bin")
    torch.load(tmp_path / "weights.bin", weights_only=False)
    assert ran.is_dir()


@pytest.mark.parametrize("case", CASES, ids=[case.change.__name__ for case in CASES])
def test_a_models_code_never_runs(client: Client, dataset_id: str, model_folder: Path, ran: Path, case: Case) -> None:
    case.change(model_folder, ran)
    model = ModelSource(id=model_folder.name, source=str(model_folder))
    spec = RunSpec(job_id="job", model=model, train_path=str(DATA))

    submission = find_refusal_at_submission(client, model_folder.name, dataset_id)
    tokenizer = find_refusal(lambda: load_tokenizer(spec))
    trainer = find_refusal(lambda: load_base_model(model, spec.training, torch.device("cpu")))

    assert (submission, tokenizer, trainer) == (case.submission, case.tokenizer, case.trainer)


def find_refusal_at_submission(client: Client, model: str, dataset_id: str) -> str | None:
    body = {"model": model, "dataset": {"id": dataset_id}}
    response = client.http.post("/jobs", params={"dry_run": True}, json=body)
    listed = client.get(f"/models/{model}")
    assert listed["trainable"] is response.is_success
    return None if response.is_success else str(response.json()["error"]["code"])


def find_refusal(load: Callable[[], object]) -> str:
    """The error's code, once it is known that the job would fail with it, as its user's, and not be tried again."""
    try:
        load()
    except Exception as exception:  # as the trainer's own edge takes them
        error = describe(exception)
        verdict = judge(Exit(1), None, ErrorEvent(code=error.code, message=error.message), [])
        assert (verdict.fate, verdict.ending.fault) == (Fate.FAIL, Fault.USER)
        return error.code
    return LOADS


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.mkdir('RAN') }}",
        "{{ self.__init__.__globals__.__builtins__.__import__('os').mkdir('RAN') }}",
        "{{ (messages | attr('__class__')).__base__ }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    ],
)
def test_a_chat_template_reaches_no_python(model_folder: Path, ran: Path, template: str) -> None:
    (model_folder / "chat_template.jinja").write_text(template.replace("RAN", str(ran)))
    spec = RunSpec(job_id="job", model=ModelSource(id="hostile", source=str(model_folder)), train_path=str(DATA))
    tokenizer = load_tokenizer(spec)

    question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}

    assert find_refusal(lambda: render(tokenizer, cast(Any, [question, answer]))) == "template_refused_row"


def test_a_client_cannot_trust_a_models_code(client: Client, dataset_id: str) -> None:
    """That is the operator's to say, in MODELS_FILE."""
    body = {"model": "tiny", "dataset": {"id": dataset_id}}
    for wish in (
        {"trust_remote_code": True},
        {"training": {"trust_remote_code": True}},
        {"model": {"id": "tiny", "trust_remote_code": True}},
        {"resources": {"trust_remote_code": True}},
    ):
        response = client.http.post("/jobs", json={**body, **wish})
        assert response.status_code == 422
        assert response.json()["error"]["code"] in ("unknown_field", "invalid_field")


@pytest.mark.parametrize(
    "field", ["output_dir", "logging_dir", "training.output_dir", "training.deepspeed.config.output_dir"]
)
def test_a_folder_to_write_to_is_no_field(client: Client, dataset_id: str, ran: Path, field: str) -> None:
    body: dict[str, Any] = {"model": "tiny", "dataset": {"id": dataset_id}}
    part = body
    *path, name = field.split(".")
    for section in path:
        part = part.setdefault(section, {})
    part[name] = f"$(mkdir {ran})"

    response = client.http.post("/jobs", json=body)

    assert response.status_code == 422
    assert field.endswith(response.json()["error"]["param"]) or name in response.json()["error"]["message"]


def pickle_rows(ran: Path) -> bytes:
    return pickle.dumps(Trap(ran))


def pickle_rows_as_text(ran: Path) -> bytes:
    return pickle.dumps(Trap(ran), protocol=0)


def zip_rows(ran: Path) -> bytes:
    """As torch.save and numpy write, too."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Trap(ran)))
    return file.getvalue()


def tar_rows(ran: Path) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        content = pickle.dumps(Trap(ran))
        member = tarfile.TarInfo(f"..{ran}")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def write_numpy(ran: Path) -> bytes:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + pickle.dumps(Trap(ran))


def write_loading_script(ran: Path) -> bytes:
    """As the `datasets` library once ran."""
    return f"import os\nos.mkdir({str(ran)!r})\n".encode()


def write_parquet(ran: Path) -> bytes:
    """Whose column says that its type is a pickle, which pyarrow once loaded (CVE-2023-47248)."""
    hostile = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Trap(ran)),
    }
    fields = [pa.field("instruction", pa.string(), metadata=hostile), pa.field("response", pa.string())]
    schema = pa.schema(fields, metadata={b"pandas": pickle.dumps(Trap(ran))})
    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"instruction": ["q"], "response": ["a"]}, schema=schema), file)
    return file.getvalue()


@pytest.mark.parametrize(
    "build",
    [pickle_rows, pickle_rows_as_text, zip_rows, tar_rows, write_numpy, write_loading_script],
    ids=lambda build: build.__name__,
)
def test_a_dataset_that_wants_to_run_code_is_refused(client: Client, ran: Path, build: Callable[[Path], bytes]) -> None:
    """Plain: at once. Compressed it can be opened only by the worker, which rejects it."""
    plain = client.http.post("/datasets", files={"file": ("rows.jsonl", build(ran))})
    packed = client.http.post("/datasets", files={"file": ("rows.jsonl.gz", gzip.compress(build(ran)))})

    assert (plain.status_code, plain.json()["error"]["code"]) == (422, "unsupported_file_type")
    assert packed.status_code == 201
    assert client.wait_for_dataset(packed.json()["id"])["status"] == "rejected"


def test_a_parquet_file_runs_no_code(client: Client, ran: Path) -> None:
    """Its rows are good, and are all that is read of it."""
    response = client.http.post("/datasets", files={"file": ("rows.parquet", write_parquet(ran))})

    assert client.wait_for_dataset(response.json()["id"])["status"] == "ready"


def test_a_checkpoint_runs_no_code(tmp_path: Path, ran: Path) -> None:
    """Whoever can write into the store or a run folder can also write a manifest that fits."""
    run_dir = RunDir(tmp_path)
    with write_folder(run_dir.checkpoints / "step-2") as folder:
        torch.save({"weights": Trap(ran), "progress": {}, "random_states": []}, folder / "trainer_state.pt")
        write_manifest(folder, run="the run", step=2, metrics={})
    run = SimpleNamespace(dir=run_dir, fingerprint="the run", reporter=None)

    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        _find_state(cast(Any, run))


def test_a_model_is_never_named_by_a_path(client: Client, dataset_id: str, tmp_path: Path) -> None:
    """A good model outside the registry is as far away as a hostile one."""
    folder = create_model_folder(tmp_path / "outside")

    for name in (str(folder), f"file://{folder}", f"../{folder.name}", "evil/repository"):
        response = client.http.post("/jobs", json={"model": name, "dataset": {"id": dataset_id}})
        assert (response.status_code, response.json()["error"]["code"]) == (422, "model_not_found")
