"""Options that several subcommands share, spelled and explained once."""

from __future__ import annotations

from typing import Annotated

import typer

DEFAULT_SERVER = "http://127.0.0.1:8000"

Store = Annotated[
    str | None,
    typer.Option("--store", help="A prompt store: a folder, file:// or redis:// URL.", metavar="URL"),
]
AdminServer = Annotated[
    str,
    typer.Option(
        "--server", help="A running server's admin address.", envvar="PROMPTMUX_ADMIN_URL", metavar="URL"
    ),
]
AdminKey = Annotated[
    str | None,
    typer.Option(
        "--key", help="An API key with the scope admin.", envvar="PROMPTMUX_ADMIN_KEY", show_envvar=True
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Publish it even if it does not beat majority and head only on dev."),
]
DEFAULT_ADMIN = "http://127.0.0.1:8001"

Timeout = Annotated[
    float,
    typer.Option(
        "--timeout",
        min=0.001,
        help="Seconds that each call to a server may take, with all of its retries.",
        metavar="SECONDS",
    ),
]
DEFAULT_TIMEOUT = 30.0
PUBLISH_TIMEOUT = 120.0  # an upload may be large, and the server tries the prompt out before it answers
