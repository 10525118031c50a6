"""`spec`: write a run folder's spec.json from the command line, for runs without the service. Torch-free."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainer_core.config import SafetyConfig, TrainingConfig
from trainer_core.run_dir import ModelSource, RunDir, RunSpec, ValidationSource
from trainer_core.safety.guard_config import GuardConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `spec`, beside its folder."""
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="the base model's folder")
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="rows to train on")
    parser.add_argument("--validation", metavar="FILE|FRACTION", help="rows held out, or the share of rows to hold out")
    parser.add_argument("--deepspeed", type=Path, metavar="FILE.json", help="a DeepSpeed configuration")
    parser.add_argument(
        "--training",
        nargs="*",
        action="extend",
        default=[],
        metavar="FILE.json|KEY=VALUE",
        help="training settings (the file of a job will do), as in lora.r=32; the later wins",
    )
    parser.add_argument(
        "--safety",
        nargs="+",
        default=[],
        metavar="KEY=VALUE|off",
        help="settings of the safety probes, as in on_violation=hold; off asks none",
    )
    parser.add_argument("--safety-probes", type=Path, metavar="FILE.yaml", help="safety probes of your own")
    parser.add_argument("--safety-rules", type=Path, metavar="FILE.yaml", help="safety rules of your own")
    parser.add_argument(
        "--safety-guard",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="a guard model beside the rules, as in url=http://guard:8000/v1 model=NAME",
    )
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="ranks over all nodes")
    parser.add_argument("--gpus", type=int, default=0, metavar="N", help="GPUs over all nodes; 0 trains on the CPU")


def create_run(arguments: argparse.Namespace) -> int:
    """0 when the folder has the spec, now or already; 2 for wrong arguments, or a folder with another spec."""
    run_dir = RunDir(arguments.folder)
    try:
        spec = _build_spec(arguments)
        if run_dir.spec.exists():
            # What reviewers accepted since is no change of the run.
            if run_dir.load_spec().model_copy(update={"accepted_findings": ()}) != spec:
                raise ValueError(f"{run_dir.spec} says something else; a changed run needs a folder of its own")
        else:
            run_dir.write_spec(spec)
    except ValidationError as error:
        for problem in error.errors():
            sys.stderr.write(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}\n")
        return 2
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _build_spec(arguments: argparse.Namespace) -> RunSpec:
    """Paths become absolute: the run may be started from anywhere. Raises OSError, ValueError."""
    if not arguments.model.is_dir():
        raise ValueError(f"--model {arguments.model} is not a folder")
    model = arguments.model.resolve()
    return RunSpec(
        job_id=arguments.folder.resolve().name,
        model=ModelSource(id=model.name, source=str(model)),
        train_path=str(arguments.data.resolve(strict=True)),
        validation=_build_validation(arguments.validation),
        training=_build_training(arguments.training, arguments.deepspeed),
        safety=_build_safety(arguments.safety),
        safety_probes_path=_resolve(arguments.safety_probes),
        safety_rules_path=_resolve(arguments.safety_rules),
        safety_guard=_build_guard(arguments.safety_guard),
        num_processes=arguments.processes,
        gpus=arguments.gpus,
    )


def _build_validation(text: str | None) -> ValidationSource:
    if text is None:
        return ValidationSource()
    try:
        fraction = float(text)
    except ValueError:
        return ValidationSource(path=str(Path(text).resolve(strict=True)))
    return ValidationSource(fraction=fraction)


def _build_training(settings: list[str], deepspeed: Path | None) -> TrainingConfig:
    training: dict[str, Any] = {}
    for setting in settings:
        name, separator, value = setting.partition("=")
        if separator:
            _set(training, name.split("."), _parse_value(value))
        else:
            content = _load_object(Path(setting))
            content = content.get("training", content)
            if not isinstance(content, dict):
                raise ValueError(f"{setting}: training is no object with settings")
            training |= content
    if deepspeed is not None:
        config = _load_object(deepspeed)
        _set(training, ["deepspeed", "config"], config)
        zero = config.get("zero_optimization")
        sections = [zero.get(name) for name in ("offload_optimizer", "offload_param")] if isinstance(zero, dict) else []
        if any(isinstance(section, dict) and section.get("device") == "cpu" for section in sections):
            training["deepspeed"].setdefault("offload", "cpu")
    return TrainingConfig.model_validate(training)


def _build_safety(settings: list[str]) -> SafetyConfig | None:
    if settings == ["off"]:
        return None
    return SafetyConfig.model_validate(_read_pairs("--safety", settings, "KEY=VALUE, or off alone"))


def _build_guard(settings: list[str]) -> GuardConfig | None:
    return GuardConfig.model_validate(_read_pairs("--safety-guard", settings, "KEY=VALUE")) if settings else None


def _read_pairs(option: str, settings: list[str], form: str) -> dict[str, Any]:
    pairs = [setting.partition("=") for setting in settings]
    if unclear := [name for name, separator, _ in pairs if not separator]:
        raise ValueError(f"{option} {unclear[0]}: write {form}")
    return {name: _parse_value(value) for name, _, value in pairs}


def _resolve(path: Path | None) -> str | None:
    return None if path is None else str(path.resolve(strict=True))


def _set(settings: dict[str, Any], path: list[str], value: object) -> None:
    for name in path[:-1]:
        settings = settings.setdefault(name, {})
        if not isinstance(settings, dict):
            raise ValueError(f"{'.'.join(path)}: {name} is a value, and has no settings of its own")
    settings[path[-1]] = value


def _parse_value(text: str) -> Any:
    """Numbers, true, false, null and lists as JSON writes them; anything else is the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _load_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content
