"""What the project promises about itself: documents that cannot rot, names that are listed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("prompt_store", "backbone", "server", "trainer", "client", "promptmux")


@pytest.mark.parametrize("package", PACKAGES)
def test_the_file_map_names_every_module(package: str) -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for file in (ROOT / package).rglob("*.py"):
        if file.name != "__init__.py":
            assert f"`{file.relative_to(ROOT / package)}`" in page, file


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake ([a-z]+)\b", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_say_what_they_own(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        assert file.read_text(encoding="utf-8").lstrip().startswith(('"""', 'r"""')), file


def test_the_installed_packages_are_listed() -> None:
    listed = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for folder in ROOT.rglob("__init__.py"):
        package = folder.parent.relative_to(ROOT)
        if package.parts and package.parts[0] in PACKAGES:
            assert f'"{".".join(package.parts)}"' in listed, package


def test_everything_but_torch_is_pinned() -> None:
    for name in ("requirements.lock", "requirements-dev.lock"):
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        pins = [line for line in lines if line and not line.startswith("#")]
        assert len(pins) > 10
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^\s*]+", pin) for pin in pins), name
