"""Write the file map in ARCHITECTURE.md from the modules' own docstrings (their first sentence)."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("prompt_store", "backbone", "server", "trainer", "client", "promptmux")


def row(file: Path, package: Path) -> str:
    """One line of the table."""
    said = " ".join(
        (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0].split()
    )
    first = re.split(r"(?<=[^A-Z]\.)\s", said)[0].removeprefix("Owns ").strip()
    return f"| `{file.relative_to(package)}` | {first[:1].lower() + first[1:] if said.startswith('Owns') else first} |"


def main() -> None:
    """Replace each package's table."""
    page = ROOT / "ARCHITECTURE.md"
    text = page.read_text(encoding="utf-8")
    for name in PACKAGES:
        package = ROOT / name
        files = sorted(f for f in package.rglob("*.py") if f.name != "__init__.py")
        table = "\n".join(["| file | what it owns |", "|---|---|", *(row(f, package) for f in files)])
        text = re.sub(
            rf"(### {name}/\n).*?(?=\n### )", lambda m, t=table: f"{m[1]}{t}\n", text, flags=re.DOTALL
        )
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
