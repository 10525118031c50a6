"""Command line of the trainer. Imports no ML library: a run tells that it started before those take their seconds."""

import argparse
import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from trainer_core.errors import TrainerError, describe
from trainer_core.launch import run_training, write_rank_error
from trainer_core.reporting import ErrorEvent, PhaseEvent, Reporter
from trainer_core.run_dir import RunDir

_SAMPLE_DATA = Path(__file__).parent.parent / "examples" / "medical_qa.jsonl"


def main() -> int:
    """0 done; 1 failed, with an ErrorEvent and a line on stderr; 2 wrong usage."""
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
            parser.error(f"{arguments.data} does not exist; name a JSONL file with --data")
        from trainer_core.demo_model import build_demo_model  # torch and transformers

        build_demo_model(arguments.folder, data=arguments.data, seed=arguments.seed)
        return 0
    return _run(arguments.command, RunDir(arguments.folder))


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer_core", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in {
        "prepare": "tokenise the run's rows",
        "train": "prepare, train, and write the adapter",
        "verify": "prove that the adapter works",
        "rank": "one process of `train`, which starts it",
    }.items():
        command = commands.add_parser(name, help=help_text)
        command.add_argument("folder", type=Path, metavar="RUN_DIR", help="a folder with spec.json")
    demo = commands.add_parser("demo-model", help="build a small Llama for demonstrations")
    demo.add_argument("folder", type=Path, metavar="DIR")
    demo.add_argument("--data", type=Path, default=_SAMPLE_DATA, help="JSONL whose text the tokenizer is trained on")
    demo.add_argument("--seed", type=int, default=0)
    return parser


def _run(command: str, run_dir: RunDir) -> int:
    if not run_dir.spec.is_file():
        sys.stderr.write(f"{run_dir.spec} does not exist\n")
        return 2
    with contextlib.closing(Reporter(run_dir.events)) as reporter:
        try:
            _COMMANDS[command](run_dir, reporter)
        except Exception as exception:  # the process's edge: everything becomes one ErrorEvent
            if not isinstance(exception, TrainerError):
                traceback.print_exc()
            error = describe(exception)
            sys.stderr.write(f"{error.code}: {error.message} {error.remedy}\n")
            event = ErrorEvent(code=error.code, message=error.message, remedy=error.remedy, details=error.details)
            if command == "rank":
                write_rank_error(run_dir, event)
            else:
                reporter.report(event)
            return 1
    return 0


def _prepare(run_dir: RunDir, reporter: Reporter) -> None:
    from trainer_core.data.prepare import prepare  # transformers

    prepare(run_dir, reporter)


def _train(run_dir: RunDir, reporter: Reporter) -> None:
    reporter.report(PhaseEvent(phase="starting"))
    run_training(run_dir, reporter)


def _train_rank(run_dir: RunDir, _: Reporter) -> None:
    from trainer_core.train import train  # torch, transformers, peft

    train(run_dir)


def _verify(run_dir: RunDir, reporter: Reporter) -> None:
    reporter.report(PhaseEvent(phase="verifying"))
    from trainer_core.adapters.verify import verify  # torch, transformers, peft

    verify(run_dir, reporter)


_COMMANDS: dict[str, Callable[[RunDir, Reporter], None]] = {
    "prepare": _prepare,
    "train": _train,
    "verify": _verify,
    "rank": _train_rank,
}

if __name__ == "__main__":
    sys.exit(main())
