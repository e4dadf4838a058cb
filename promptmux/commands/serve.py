"""`promptmux serve`: run the server. Flags, variables and the TOML file are the server's own settings."""

from __future__ import annotations

import sys

import typer

# The server's settings declare their flags themselves; help is theirs, too.
CONTEXT = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def run(context: typer.Context) -> None:
    """Serve prompts from a store: `promptmux serve --help` lists every setting."""
    from server import Settings, SettingsError, serve

    try:
        settings = Settings.load(context.args)
    except SettingsError as error:
        print(f"promptmux serve: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    raise typer.Exit(serve(settings))
