"""`promptmux bench`: measure this machine, from a source checkout. The bench itself is `loadtest.bench`."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import typer

# The bench declares its own options; its help is its own, too.
CONTEXT = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
_ROOT = Path(__file__).resolve().parents[2]


def run(context: typer.Context) -> None:
    """Measure against the machine's own rate and against peers: `promptmux bench --help` lists every option."""
    if not (_ROOT / "loadtest" / "bench" / "__main__.py").is_file():
        print(
            "promptmux bench: the bench is not part of an installation; it runs from a source checkout: "
            "clone the repository, then `make bench` there",
            file=sys.stderr,
        )
        raise typer.Exit(2)
    if importlib.util.find_spec("peft") is None:
        print(
            "promptmux bench: the bench needs the development requirements: run `make bench` once in the checkout",
            file=sys.stderr,
        )
        raise typer.Exit(2)
    # A process of its own: `loadtest` is not installed, and the checkout's is meant, not one in the current folder.
    command = [sys.executable, "-P", "-m", "loadtest.bench", *context.args]
    bench = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(_ROOT)}, check=False)
    raise typer.Exit(bench.returncode)
