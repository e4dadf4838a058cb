"""How the compiled attention comes to be: built once on a machine, kept in a cache, done without where it cannot be.

Owns the compiler's command line and the cache of libraries. Knows nothing of what the library does.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from backbone.errors import NativeUnavailable
from backbone.native import LANES, MOST_VECTORS, NativeAttention, vectors_of

SOURCE = Path(__file__).parent / "kernels" / "attention.cpp"
# No flag that lets the compiler assume finite numbers: a NaN must stay one.
_FLAGS = (
    *("-O3", "-march=native", "-funroll-loops", "-std=c++17", "-shared", "-fPIC", "-pthread"),
    *("-fno-math-errno", "-fno-trapping-math"),
)


def load_native(cache: Path, head_dim: int) -> NativeAttention:
    """The compiled attention for heads of this width, from the cache or built now (some seconds).

    Raises:
        NativeUnavailable: there is no C++ compiler, it fails, the heads are too wide, or nothing can be written.

    """
    vectors = vectors_of(head_dim)
    if vectors > MOST_VECTORS:
        raise NativeUnavailable(f"heads of {head_dim} dimensions are wider than {MOST_VECTORS * LANES}")
    compiler = find_compiler()
    flags = (*_FLAGS, f"-DVECTORS={vectors}")
    try:
        identity = hashlib.sha256()
        for part in (
            SOURCE.read_bytes(),
            " ".join(flags).encode(),
            _version(compiler),
            _processor().encode(),
        ):
            identity.update(hashlib.sha256(part).digest())
        library = cache / f"attention-{identity.hexdigest()[:16]}.so"
        if not _is_whole(library):
            cache.mkdir(parents=True, exist_ok=True)
            _build(compiler, flags, library)
        return NativeAttention(library, vectors)
    except OSError as error:
        raise NativeUnavailable(f"{cache}: {error}") from error


def _is_whole(library: Path) -> bool:
    """Whether the library is what was built: one torn by a power cut would end the process that loads it."""
    try:
        return _digest_of(library).read_text("ascii") == hashlib.sha256(library.read_bytes()).hexdigest()
    except (OSError, UnicodeDecodeError):
        return False


def _digest_of(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _version(compiler: str) -> bytes:
    return (
        compiler.encode() + subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    )


def find_compiler() -> str:
    """The compiler's path: CXX, else the first that is there.

    Raises:
        NativeUnavailable: there is none.

    """
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found is not None:
            return found
    raise NativeUnavailable("no C++ compiler (c++, g++ or clang++) on the PATH: install one, such as g++")


def _processor() -> str:
    """What the compiler's `native` means here: a cache may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    about = {
        line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part", "cpu\t"))
    }
    return "\n".join([platform.machine(), *sorted(about)])


def _build(compiler: str, flags: Sequence[str], library: Path) -> None:
    """Compile beside the library and move it there whole: two processes may do so at once."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        command = [compiler, *flags, "-o", str(made), str(SOURCE)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=300)
        except subprocess.CalledProcessError as error:
            said = (error.stderr or b"").decode(errors="replace").splitlines()
            first = next((line for line in said if "error" in line), str(error))
            raise NativeUnavailable(f"{compiler} failed: {first.strip()}") from error
        except subprocess.TimeoutExpired as error:
            raise NativeUnavailable(f"{compiler} did not end within 300 s") from error
        digest = Path(folder) / "digest"
        digest.write_text(hashlib.sha256(made.read_bytes()).hexdigest(), "ascii")
        made.replace(library)
        digest.replace(_digest_of(library))
