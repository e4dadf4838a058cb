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
    "reference": "promptmux.commands.reference",
    "sweep": "promptmux.commands.sweep",
    "import-peft": "promptmux.commands.import_peft",
    "export-peft": "promptmux.commands.export_peft",
    "predict": "promptmux.commands.predict",
    "ensemble": "promptmux.commands.ensemble",
    "publish": "promptmux.commands.publish",
    "canary": "promptmux.commands.canary",
    "promote": "promptmux.commands.promote",
    "rollback": "promptmux.commands.rollback",
    "tasks": "promptmux.commands.tasks",
    "collect": "promptmux.commands.collect",
    "doctor": "promptmux.commands.doctor",
    "inspect": "promptmux.commands.inspect",
    "similar": "promptmux.commands.similar",
    "key": "promptmux.commands.key",
    "bench": "promptmux.commands.bench",
}

# Errors that a person can mend, by the modules that have them; those of `trainer` bring their exit code along.
_MENDED = {
    "backbone.errors": "BackboneError",
    "client.errors": "ClientError",
    "prompt_store.errors": "PromptStoreError",
}
_ADVICE = "a smaller model, batch or prompt.max_tokens, or another device; what was saved can be gone on with"


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
    """Run the command line; errors that are a person's to mend end in a line or two, without a traceback."""
    try:
        build()()
    except KeyboardInterrupt:  # before a command of its own has begun to watch for it
        sys.exit(130)
    except Exception as error:
        status = exit_code(error)
        if status is None:
            raise
        print(f"promptmux: {error}", file=sys.stderr)
        if advice := _ADVICE if isinstance(error, _memory()) else getattr(error, "advice", ""):
            print(f"what to do: {advice}", file=sys.stderr)
        sys.exit(status)


def exit_code(error: Exception) -> int | None:
    """The exit code of an error that a person can mend; None for a defect, which keeps its traceback."""
    if isinstance(error, _known("trainer.errors", "TrainerError")):
        code: int = error.exit_code  # type: ignore[attr-defined]
        return code
    if isinstance(error, _memory()):
        return 1
    mended = [_known(module, name) for module, name in _MENDED.items()]
    return 2 if isinstance(error, tuple(mended)) else None


def _memory() -> type[Exception] | tuple[()]:
    """What torch raises where a device's memory is full."""
    return _known("torch", "OutOfMemoryError")


def _known(module: str, name: str) -> type[Exception] | tuple[()]:
    """A class of errors; nothing where its module is not loaded: then the error at hand cannot be one of it.

    To load `backbone` is to load torch, and takes longer than everything else that `promptmux tasks` does.
    """
    loaded = sys.modules.get(module)
    return () if loaded is None else getattr(loaded, name)


if __name__ == "__main__":
    main()
