"""The `medtune` command. Only the module of the command that was called is imported."""

import gc
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from pydantic import ValidationError

COMMANDS = {
    **dict.fromkeys(("serve", "demo"), "cli.service"),
    "api": "cli.api_server",
    **dict.fromkeys(("worker", "reconciler"), "cli.daemons"),
    "migrate": "cli.database",
    "keys": "cli.keys",
    "doctor": "cli.doctor",
    "audit": "cli.audit",
    **dict.fromkeys(("reviews", "adapters"), "cli.reviews"),
    "scan": "cli.scan",
    "verify": "cli.verify",
    "replace": "cli.replace",
    "dedup": "cli.dedup",
    "vault": "cli.vault",
    "lineage": "cli.lineage",
    "webhooks": "cli.webhooks",
    "import-openai": "cli.openai_import",
    "rows": "cli.rows",
    "export": "cli.export",
    **dict.fromkeys(("submit", "plan", "wait", "jobs", "show", "logs"), "cli.remote"),
    **dict.fromkeys(("pause", "resume", "cancel", "retry", "delete", "download"), "cli.remote"),
    **dict.fromkeys(("datasets", "workers"), "cli.remote"),
    "models": "cli.models",
    "usage": "cli.usage",
}
"""The module of each command."""


def build_app(command: str | None = None) -> typer.Typer:
    """With the commands of one command's module; of all for `--help` or a name that is none."""
    app = typer.Typer(
        no_args_is_help=True, pretty_exceptions_enable=False, help="Fine-tune language models with LoRA on your GPUs."
    )
    app.callback()(_set_target)  # It also keeps a lone command a subcommand.
    modules = [COMMANDS[command]] if command in COMMANDS else dict.fromkeys(COMMANDS.values())
    gc.disable()  # What modules make stays: looking for garbage among it takes a fifth of the start.
    for module in modules:
        importlib.import_module(module).add_commands(app)
    gc.enable()
    return app


def find_command(words: Sequence[str]) -> str | None:
    """The first word that is no option of `medtune` itself."""
    words = list(words)
    while words and words[0].startswith("--url"):
        words = words[1:] if "=" in words[0] else words[2:]
    return words[0] if words else None


def _set_target(
    url: Annotated[str | None, typer.Option(help="The service; before MEDTUNE_PUBLIC_URL and medtune.toml.")] = None,
) -> None:
    if url:
        os.environ["MEDTUNE_PUBLIC_URL"] = url


def _list_words() -> list[str]:
    """The command line, also when the shell asks how it may go on."""
    if "_MEDTUNE_COMPLETE" in os.environ:
        line = os.environ.get("_TYPER_COMPLETE_ARGS") or os.environ.get("COMP_WORDS", "")
        return line.split()[1:]
    return sys.argv[1:]


def main() -> None:
    app = build_app(find_command(_list_words()))
    try:
        app()
    except ValidationError as error:  # Of the settings: nothing else here validates.
        problems = "; ".join(f"MEDTUNE_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        sys.exit(f"medtune: {problems}")


if __name__ == "__main__":
    main()
