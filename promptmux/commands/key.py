"""`promptmux key`: make an API key, shown once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    name: Annotated[str, typer.Argument(help="Who will use it; it stands in logs and histories.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="infer, admin or metrics; may be given again. Default: infer.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Add the key's line to this file (see serve --api-keys-file).")
    ] = None,
) -> None:
    """Make a random API key. It is printed once; the server keeps its SHA-256 alone."""
    from server.auth import new_key, parse_keys

    try:
        known = file.read_text("utf-8").splitlines() if file is not None and file.exists() else []
        token, line = new_key(name, scope or ["infer"])
        parse_keys([*known, line])
    except UnicodeDecodeError:
        raise typer.BadParameter(f"{file} is no text file of keys") from None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}") from None
    if file is None:
        typer.echo(f"key:  {token}\nline: {line}")
        typer.echo("Start the server with --api-keys LINE, or keep the line in --api-keys-file.", err=True)
        return
    # Nobody else has to know who may call; the key itself cannot be read from its hash.
    try:
        file.touch(mode=0o600, exist_ok=True)
        ended = not known or file.read_text("utf-8").endswith("\n")
        with file.open("a", encoding="utf-8") as out:
            out.write(("" if ended else "\n") + line + "\n")
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}") from None
    typer.echo(token)
    typer.echo(f"Added {line.rpartition(':')[0]} to {file}; the server reads it when it starts.", err=True)
