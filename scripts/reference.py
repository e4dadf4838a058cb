"""Write docs/reference/ and the index docs/README.md from the code: settings, routes, commands, prompt files, errors.

    python scripts/reference.py            (writes what has changed)
    python scripts/reference.py --check    (writes nothing; ends with 1 and names the pages that are stale)

What the code does not say in words (what a field means, what to do about an error) stands in reference_words.py; a
name without words, and words without a name, are errors here.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import typer  # noqa: E402
from pydantic import BaseModel  # noqa: E402
from pydantic.fields import FieldInfo  # noqa: E402

from prompt_store import BackboneRef, Manifest, PromptStoreError  # noqa: E402
from prompt_store.codec import _expected_shapes  # noqa: E402
from promptmux.__main__ import build  # noqa: E402
from scripts import reference_training as training  # noqa: E402
from scripts import reference_words as words  # noqa: E402
from scripts.reference_routes import schemas  # noqa: E402
from scripts.reference_tables import default_of, table, type_of  # noqa: E402
from server import Settings  # noqa: E402
from server.errors import ServerError  # noqa: E402

MADE = (
    "<!-- Written by scripts/reference.py from the code: change the code, or scripts/reference_words.py. -->"
)
INDEX_BEGIN, INDEX_END = "<!-- index: begin -->", "<!-- index: end -->"


class Mismatch(Exception):
    """The code has a name that no words are for, or the other way round."""


def agree(what: str, names: set[str], explained: set[str]) -> None:
    """Mismatch unless the two are the same names."""
    if names != explained:
        raise Mismatch(
            f"{what}: without words {sorted(names - explained)}, words for nothing {sorted(explained - names)}"
        )


def settings_page() -> str:
    """docs/reference/settings.md."""
    rows = []
    for name, field in Settings.model_fields.items():
        allowed = type_of(field.annotation, field.metadata)
        rows.append((f"`{name}`", allowed, default_of(field), field.description or ""))
    return page("Settings", words.SETTINGS, table(("setting", "takes", "default", "what it is"), rows))


def routes_page() -> str:
    """docs/reference/routes.md."""
    parts = []
    met: set[str] = set()
    for port, scopes, schema in asyncio.run(schemas()):
        rows = []
        for path, methods in schema["paths"].items():
            for method, route in methods.items():
                name = f"{method.upper()} {path}"
                met.add(name)
                needed = " or ".join(f"`{scope}`" for scope in scopes[name]) or "none"
                query = ", ".join(
                    f"`{p['name']}`" for p in route.get("parameters", ()) if p["in"] in ("query", "header")
                )
                codes = ", ".join(f"`{code}`" for code in words.ROUTES.get(name, ()))
                rows.append((f"`{name}`", route["summary"], needed, query or "–", codes or "–"))
        columns = ("route", "what it does", "scope", "query and headers", "error codes of its own")
        parts.append(f"## {port}\n\n{table(columns, rows)}")
    agree("routes", met, set(words.ROUTES))
    known = {code for code, _, _ in errors()}
    told = {code for codes in words.ROUTES.values() for code in codes} | set(words.ANY_ROUTE)
    if unknown := told - known:
        raise Mismatch(f"routes name codes that no error has: {sorted(unknown)}")
    if missing := known - told - set(words.NOT_OVER_HTTP):
        raise Mismatch(f"no route is said to answer {sorted(missing)}")
    anywhere = "Any route may also answer " + ", ".join(f"`{code}`" for code in words.ANY_ROUTE) + "."
    return page("Routes", words.ROUTES_TEXT, *parts, anywhere)


def commands_page() -> str:
    """docs/reference/cli.md."""
    group: Any = typer.main.get_command(build())  # click's own classes, or typer's copy of them
    parts = []
    for name, command in group.commands.items():
        said = " ".join((command.help or "").split())
        parameters = [one for one in command.params if one.name != "help"]
        usage = f"promptmux {name}" + "".join(
            f" {argument(one)}" for one in parameters if one.param_type_name == "argument"
        )
        part = f"## promptmux {name}\n\n{said}\n\n`{usage} [options]`"
        if parameters:
            rows = [(option(one), shown_default(one), getattr(one, "help", None) or "") for one in parameters]
            part += "\n\n" + table(("option", "default", "what it is"), rows)
        parts.append(part)
    return page("Commands", words.COMMANDS, *parts)


def argument(one: Any) -> str:
    """An argument as a usage line has it."""
    shown = (one.name or "").upper() + ("…" if one.nargs == -1 else "")
    return shown if one.required else f"[{shown}]"


def option(one: Any) -> str:
    """An option or argument as the table has it, with its variable."""
    if one.param_type_name == "argument":
        return f"`{argument(one)}`"
    given = ", ".join(f"`{name}`" for name in (*one.opts, *one.secondary_opts))
    variable = getattr(one, "envvar", None)
    return f"{given} (`{variable}`)" if variable else given


def shown_default(one: Any) -> str:
    """The default, where it says something."""
    if one.required:
        return "required"
    if isinstance(one.show_default, str):
        return one.show_default
    value = one.default
    return "–" if value is None or value is False or value == "" or callable(value) else f"`{value}`"


def training_page() -> str:
    """docs/reference/training.md."""
    return page("Training settings", *training.parts())


def prompt_file_page() -> str:
    """docs/reference/prompt-file.md."""
    fields = list(manifest_fields(Manifest))
    agree("manifest", {name for name, *_ in fields}, set(words.MANIFEST))
    rows = [
        (f"`{name}`", type_of(f.annotation, f.metadata), default_of(f), words.MANIFEST[name])
        for name, f in fields
    ]
    manifest = table(("field", "takes", "default", "what it is"), rows)
    tensors = table(("prompt", "tensor", "shape"), list(tensor_rows()))
    return page(
        "The prompt file", words.PROMPT_FILE, f"## The manifest\n\n{manifest}", words.TENSORS, tensors
    )


def manifest_fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field of the manifest and of what is in it, with its whole name."""
    for name, field in model.model_fields.items():
        whole = prefix + name
        yield whole, field
        for inner, label in models_in(field.annotation):
            yield from manifest_fields(inner, f"{whole}{label}.")


def models_in(annotation: Any) -> list[tuple[type[BaseModel], str]]:
    """The models that a field may hold, and what its fields' names get: [] in a list, (type) where one decides."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [(annotation, "")]
    inner = [found for one in get_args(annotation) for found in models_in(one)]
    if get_origin(annotation) is tuple:
        return [(model, "[]") for model, _ in inner]
    if len(inner) > 1:
        return [(model, f"({model.model_fields['type'].default})") for model, _ in inner]
    return inner


def tensor_rows() -> Iterator[tuple[str, str, str]]:
    """Kind of prompt, tensor and shape, asked of the codec with numbers that tell which size is which."""
    sizes = {"embedding_width": 11, "hidden_size": 13, "layers": 17, "kv_heads": 19, "head_dim": 23}
    named = {value: name for name, value in sizes.items()} | {
        7: "soft slots",
        3: "labels",
        29: "out_features",
    }
    prefix = [
        f"prefix.{stack}.{part}" for stack in ("encoder", "decoder", "cross") for part in ("key", "value")
    ]
    two = {
        "type": "linear",
        "layers": (
            {"in_features": 13, "out_features": 29, "activation": "tanh"},
            {"in_features": 29, "out_features": 3},
        ),
    }
    vectors = {"type": "label_embeddings", "descriptions": ("a", "b", "c"), "scale": 1.0}
    verbalizer = {"type": "verbalizer", "words": (("a",), ("b",), ("c",))}
    cases: tuple[tuple[str, str, Mapping[str, Any], Sequence[str]], ...] = (
        ("soft prompt", "{soft:7} {text} {mask}", verbalizer, ()),
        ("prefix", "{text} {mask}", verbalizer, prefix),
        ("linear head of two layers", "{text}", two, ()),
        ("label embeddings", "{text}", vectors, ()),
        ("verbalizer", "{text} {mask}", verbalizer, ()),
    )
    for kind, template, head, present in cases:
        manifest = Manifest(
            task_id="t",
            labels=("a", "b", "c"),
            method="m",
            backbone=BackboneRef(name="b", fingerprint="f", **sizes),
            template=template,
            pooling="mask" if "{mask}" in template else "mean",
            position_offset=0,
            max_length={"tokens": 8},  # type: ignore[arg-type]  # pydantic reads it
            head=head,  # type: ignore[arg-type]
        )
        shapes = _expected_shapes(manifest, dict.fromkeys(present))  # type: ignore[arg-type]
        for name, shape in shapes.items():
            yield kind, f"`{name}`", "[" + ", ".join("P" if n is None else named[n] for n in shape) + "]"
        if not shapes:
            yield kind, "none", "–"


def errors() -> list[tuple[str, int, str]]:
    """Code, status and meaning of every error that an answer may name."""
    found = [(code, status, said) for code, (status, said) in words.FROM_THE_ROUTER.items()]
    for base in (ServerError, PromptStoreError):
        waiting: list[Any] = [base]
        while waiting:
            kind = waiting.pop(0)
            waiting = [*(sub for sub in kind.__subclasses__() if sub.__module__ == base.__module__), *waiting]
            said = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
            found.append((kind.code, kind.status, said.split("; the base of")[0].removesuffix(".") + "."))
    return sorted(found, key=lambda one: (one[1], one[0]))


def errors_page() -> str:
    """docs/reference/errors.md."""
    found = errors()
    agree("errors", {code for code, _, _ in found}, set(words.WHAT_TO_DO))
    rows = [(f"`{code}`", str(status), said, words.WHAT_TO_DO[code]) for code, status, said in found]
    return page("Errors", words.ERRORS, table(("code", "status", "what it says", "what to do"), rows))


def page(title: str, *parts: str) -> str:
    """A whole page."""
    return "\n\n".join([f"# {title}", MADE, *(part.strip() for part in parts)]) + "\n"


def index_page() -> str:
    """docs/README.md, with every page of docs/ under its folder's heading."""
    parts = []
    for heading, folder, said in words.INDEX:
        files = sorted(file for file in (ROOT / "docs" / folder).glob("*.md") if file.name != "README.md")
        if not files:
            continue
        lines = [f"- [{title_of(file)}]({file.relative_to(ROOT / 'docs')})" for file in files]
        parts.append("\n".join([f"## {heading}", "", *([said, ""] if said else []), *lines]))
    body = "\n\n".join(parts)
    return f"# Documentation\n\n{words.INDEX_TEXT.strip()}\n\n{INDEX_BEGIN}\n{body}\n{INDEX_END}\n"


def title_of(file: Path) -> str:
    """A page's own first heading; those that are not there yet are written in this very run."""
    found = re.search(r"^# (.+)$", file.read_text(encoding="utf-8"), re.M)
    return found[1] if found else file.stem


PAGES: Mapping[str, Callable[[], str]] = {
    "docs/reference/settings.md": settings_page,
    "docs/reference/routes.md": routes_page,
    "docs/reference/cli.md": commands_page,
    "docs/reference/training.md": training_page,
    "docs/reference/prompt-file.md": prompt_file_page,
    "docs/reference/errors.md": errors_page,
    "docs/README.md": index_page,  # last: it lists the others
}


def main() -> int:
    """Write the pages, or say which are stale."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if a page is stale")
    check = parser.parse_args().check
    stale = []
    for name, make in PAGES.items():
        file, text = ROOT / name, make()
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
    print(("stale: " if check else "wrote: ") + (", ".join(stale) or "nothing"))
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
