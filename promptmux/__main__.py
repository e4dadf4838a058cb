"""The `promptmux` command. Owns the list of subcommands and how errors end the process, and nothing else.

Exit codes: 0 done, 1 failed, 2 bad input or settings (one clear line on stderr), 130 and 143 interrupted.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import typer

_COMMANDS = {
    "serve": "promptmux.commands.serve",
    "train": "promptmux.commands.train",
    "predict": "promptmux.commands.predict",
    "publish": "promptmux.commands.publish",
    "canary": "promptmux.commands.canary",
    "promote": "promptmux.commands.promote",
    "rollback": "promptmux.commands.rollback",
    "tasks": "promptmux.commands.tasks",
    "collect": "promptmux.commands.collect",
    "doctor": "promptmux.commands.doctor",
    "inspect": "promptmux.commands.inspect",
    "key": "promptmux.commands.key",
    "bench": "promptmux.commands.bench",
}


def build() -> typer.Typer:
    """Collect the subcommands; each module imports torch and the like only when its command runs."""
    app = typer.Typer(
        help="One frozen model, thousands of tasks: serve and train soft prompts.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        # Help texts are plain text: as markup, an example such as hf:NAME[/config] would be a closing tag.
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name, module in _COMMANDS.items():
        command: Any = importlib.import_module(module)
        app.command(name, context_settings=getattr(command, "CONTEXT", None))(command.run)
    return app


def main() -> None:
    """Run the command line; errors that are a person's to mend end in one line, without a traceback."""
    try:
        build()()
    except Exception as error:
        status = exit_code(error)
        if status is None:
            raise
        print(f"promptmux: {error}", file=sys.stderr)
        sys.exit(status)


def exit_code(error: Exception) -> int | None:
    """The exit code of an error that a person can mend; None for a defect, which keeps its traceback."""
    from backbone.errors import BackboneError
    from client import ClientError
    from prompt_store import PromptStoreError
    from trainer.errors import TrainerError

    if isinstance(error, TrainerError):
        return error.exit_code
    if isinstance(error, PromptStoreError | BackboneError | ClientError):
        return 2
    return None


if __name__ == "__main__":
    main()
