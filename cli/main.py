"""The `medtune` command. Only the module of the command that was called is imported."""

import gc
import importlib
import sys

import typer
from pydantic import ValidationError

COMMANDS = {
    **dict.fromkeys(("serve", "demo"), "cli.service"),
    "api": "cli.api_server",
    **dict.fromkeys(("worker", "reconciler"), "cli.daemons"),
    **dict.fromkeys(("migrate", "keys"), "cli.database"),
    "doctor": "cli.doctor",
    **dict.fromkeys(("submit", "plan", "wait", "jobs", "show", "logs"), "cli.remote"),
    **dict.fromkeys(("pause", "resume", "cancel", "retry", "download"), "cli.remote"),
    **dict.fromkeys(("datasets", "models", "workers"), "cli.remote"),
}
"""The module of each command."""


def build_app(command: str | None = None) -> typer.Typer:
    """With the commands of one command's module; of all for `--help` or a name that is none."""
    app = typer.Typer(
        no_args_is_help=True, pretty_exceptions_enable=False, help="Fine-tune language models with LoRA on your GPUs."
    )
    app.callback()(lambda: None)  # Keeps a lone command a subcommand.
    modules = [COMMANDS[command]] if command in COMMANDS else dict.fromkeys(COMMANDS.values())
    gc.disable()  # What modules make stays: looking for garbage among it takes a fifth of the start.
    for module in modules:
        importlib.import_module(module).add_commands(app)
    gc.enable()
    return app


def main() -> None:
    app = build_app(sys.argv[1] if len(sys.argv) > 1 else None)
    try:
        app()
    except ValidationError as error:  # Of the settings: nothing else here validates.
        problems = "; ".join(f"MEDTUNE_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        sys.exit(f"medtune: {problems}")


if __name__ == "__main__":
    main()
