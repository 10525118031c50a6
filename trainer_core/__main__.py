"""Command line of the trainer. Imports no ML library: a run tells that it started before those take their seconds."""

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from trainer_core.errors import ModelError, TrainerError, TrainingHeld, TrainingStopped, describe
from trainer_core.launch import Nodes, run_training, write_rank_error
from trainer_core.new_run import add_arguments, create_run
from trainer_core.reporting import ErrorEvent, PhaseEvent, Reporter
from trainer_core.run_dir import ModelSource, RunDir
from trainer_core.stopping import StopRequest

_SAMPLE_DATA = Path(__file__).parent.parent / "examples" / "medical_qa.jsonl"


EXIT_STOPPED = 75
"""EX_TEMPFAIL of sysexits.h: a checkpoint is saved, and the same command goes on from it."""


def main() -> int:
    """0 done; 1 failed, with an ErrorEvent and a line on stderr; 2 wrong usage; 75 stopped or held, to start again."""
    parser = _build_parser()
    arguments = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars are noise in a log
    is_quiet = int(os.environ.get("RANK", "0")) > 0
    logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("trainer_core").setLevel(logging.WARNING if is_quiet else logging.INFO)
    # It advises to fetch a kernel from a hub, at every start.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    if arguments.command == "demo-model":
        if not arguments.data.is_file():
            parser.error(f"{arguments.data} does not exist; name a file of rows with --data")
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        from trainer_core.demo_model import build_demo_model  # torch and transformers

        build_demo_model(arguments.folder, data=arguments.data, seed=arguments.seed)
        return 0
    if arguments.command == "spec":
        return create_run(arguments)
    if arguments.command == "check-model":
        return _check_model(arguments)
    return _run(arguments)


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer_core", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    spec = commands.add_parser("spec", help="begin a run: write its spec.json")
    spec.add_argument("folder", type=Path, metavar="RUN_DIR", help="a new folder, or one with the same spec")
    add_arguments(spec)
    for name, help_text in {
        "prepare": "tokenise the run's rows",
        "train": "prepare, train, and write the adapter",
        "verify": "prove that the adapter works",
        "merge": "write base and adapter as one bfloat16 model",
        "rank": "one process of `train`, which starts it",
    }.items():
        command = commands.add_parser(name, help=help_text)
        command.add_argument("folder", type=Path, metavar="RUN_DIR", help="a folder with spec.json")
        if name == "train":
            command.add_argument("--nodes", type=int, default=1, help="hosts that train together, sharing RUN_DIR")
            command.add_argument("--node-rank", type=int, default=0, help="this host's number, from 0")
            command.add_argument("--rendezvous", default="", metavar="HOST:PORT", help="a free port of the first host")
        if name == "merge":
            command.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="a new folder")
    check = commands.add_parser("check-model", help="load all of a model but its weights, and print what is wrong")
    check.add_argument("folder", type=Path, metavar="DIR")
    check.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with it")
    demo = commands.add_parser("demo-model", help="build a small Llama for demonstrations")
    demo.add_argument("folder", type=Path, metavar="DIR")
    demo.add_argument("--data", type=Path, default=_SAMPLE_DATA, help="JSONL whose text the tokenizer is trained on")
    demo.add_argument("--seed", type=int, default=0)
    return parser


def _check_model(arguments: argparse.Namespace) -> int:
    """The last line is a JSON object: code, message and remedy, or none of them."""
    from trainer_core.load_check import check_loading  # torch and transformers

    folder = arguments.folder.resolve()
    trust = arguments.trust_remote_code
    problem = {}
    try:
        check_loading(ModelSource(id=folder.name, source=str(folder), trust_remote_code=trust))
    except ModelError as error:
        problem = {"code": error.code, "message": error.message, "remedy": error.remedy}
    sys.stdout.write(f"{json.dumps(problem)}\n")
    return 1 if problem else 0


def _run(arguments: argparse.Namespace) -> int:
    run_dir, command = RunDir(arguments.folder.resolve()), arguments.command
    if not run_dir.spec.is_file():
        sys.stderr.write(f"{run_dir.spec} does not exist\n")
        return 2
    try:
        reporter = Reporter(None if getattr(arguments, "node_rank", 0) > 0 else run_dir.events)
    except OSError as exception:  # a folder that cannot be written
        return _report_end(run_dir, Reporter(None), command, describe(exception))
    with contextlib.closing(reporter):
        try:
            # DeepSpeed would look for a GPU itself, and take one that the run did not ask for.
            os.environ.setdefault("DS_ACCELERATOR", "cuda" if run_dir.load_spec().gpus else "cpu")
            _COMMANDS[command](run_dir, reporter, arguments)
        except Exception as exception:  # the process's edge: everything becomes one event
            error = describe(exception)
            if error.code == "internal_error":
                traceback.print_exc()
            with contextlib.suppress(OSError):  # a full disk takes no event; stderr has heard it
                return _report_end(run_dir, reporter, command, error)
            return 1
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # there is nothing left to stop
    return 0


def _report_end(run_dir: RunDir, reporter: Reporter, command: str, error: TrainerError) -> int:
    sys.stderr.write(f"{error.code}: {error.message} {error.remedy}\n")
    event = ErrorEvent(code=error.code, message=error.message, remedy=error.remedy, details=error.details)
    if command == "rank":
        write_rank_error(run_dir, event)
        return 0 if isinstance(error, TrainingStopped) else 1
    if isinstance(error, TrainingHeld) or not (isinstance(error, TrainingStopped) or command == "merge"):
        reporter.report(event)  # `merge` is no part of the run's story
    if isinstance(error, TrainingStopped):
        reporter.report(PhaseEvent(phase="stopped", message=error.message))
    return EXIT_STOPPED if isinstance(error, TrainingStopped) else 1


def _prepare(run_dir: RunDir, reporter: Reporter, _: argparse.Namespace) -> None:
    from trainer_core.data.prepare import prepare  # transformers

    prepare(run_dir, reporter)


def _train(run_dir: RunDir, reporter: Reporter, arguments: argparse.Namespace) -> None:
    reporter.report(PhaseEvent(phase="starting"))
    nodes = Nodes(arguments.nodes, arguments.node_rank, arguments.rendezvous)
    run_training(run_dir, reporter, nodes, StopRequest())


def _train_rank(run_dir: RunDir, *_: object) -> None:
    stop = StopRequest()
    from accelerate import PartialState  # torch, transformers, peft

    from trainer_core.train import train

    train(run_dir, stop)
    PartialState().destroy_process_group()


def _verify(run_dir: RunDir, reporter: Reporter, _: argparse.Namespace) -> None:
    reporter.report(PhaseEvent(phase="verifying"))
    from trainer_core.adapters.verify import verify  # torch, transformers, peft

    verify(run_dir, reporter)


def _merge(run_dir: RunDir, _: Reporter, arguments: argparse.Namespace) -> None:
    from trainer_core.adapters.merge import merge  # torch, transformers, peft

    merge(run_dir, arguments.out_dir)


_COMMANDS: dict[str, Callable[[RunDir, Reporter, argparse.Namespace], None]] = {
    "prepare": _prepare,
    "train": _train,
    "verify": _verify,
    "merge": _merge,
    "rank": _train_rank,
}

if __name__ == "__main__":
    sys.exit(main())
