"""How the compiled attention comes to be: built once on a machine, kept in a cache, done without where it cannot be.

Owns the compiler's command line and the cache of libraries. Knows nothing of what the library does.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from backbone.errors import NativeUnavailable
from backbone.native import NativeAttention

SOURCE = Path(__file__).parent / "kernels" / "attention.cpp"
# No flag that lets the compiler assume finite numbers: a NaN must stay one.
_FLAGS = (
    *("-O3", "-march=native", "-funroll-loops", "-std=c++17", "-shared", "-fPIC", "-pthread"),
    *("-fno-math-errno", "-fno-trapping-math"),
)


def load_native(cache: Path) -> NativeAttention:
    """The compiled attention, from the cache or built now (some seconds).

    Raises:
        NativeUnavailable: there is no C++ compiler, it fails, or the library cannot be loaded.

    """
    source = SOURCE.read_bytes()
    compiler = _compiler()
    identity = hashlib.sha256()
    for part in (source, " ".join(_FLAGS).encode(), compiler.encode(), _processor().encode()):
        identity.update(hashlib.sha256(part).digest())
    library = cache / f"attention-{identity.hexdigest()[:16]}.so"
    try:
        if library.is_file():
            with contextlib.suppress(OSError):  # torn, as by a full disk: made anew
                return NativeAttention(library)
        cache.mkdir(parents=True, exist_ok=True)
        _build(compiler, library)
        return NativeAttention(library)
    except OSError as error:
        raise NativeUnavailable(f"{library}: {error}") from error


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found is not None:
            return found
    raise NativeUnavailable("no C++ compiler (c++, g++ or clang++) on the PATH")


def _processor() -> str:
    """What the compiler's `native` means here: a cache may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    about = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return "\n".join(sorted(set(about)))


def _build(compiler: str, library: Path) -> None:
    """Compile beside the library and move it there whole: two processes may do so at once."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        command = [compiler, *_FLAGS, "-o", str(made), str(SOURCE)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        except subprocess.CalledProcessError as error:
            said = (error.stderr or "").strip().splitlines()
            raise NativeUnavailable(f"{compiler} failed: {said[0] if said else error}") from error
        except subprocess.TimeoutExpired as error:
            raise NativeUnavailable(f"{compiler} did not end within 300 s") from error
        made.replace(library)
