"""What is wrong with this machine and installation for a server, and what to change.

Owns: the judgement of limits, memory, versions, device, compiler and cache. Must not know: stores, the command line.
"""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from backbone.compiler import find_compiler
from backbone.errors import BackboneError, NativeUnavailable
from backbone.loader import choose_device, choose_dtype, user_cache
from prompt_store.finding import UNKNOWN, Finding, Verdict

_FILES = (256, 4096)  # a problem below, a warning below
_MEMORY = (2**29, 2**31)  # bytes that are free: likewise
_SHOWN = ("torch", "transformers", "redis", "starlette")
_CGROUP = Path("/sys/fs/cgroup")


def examine_machine(device: str = "auto", dtype: str = "auto", kernels: str = "auto") -> list[Finding]:
    """Every finding about this machine for a server with these settings."""
    chosen = _device(device, dtype)
    return [*_versions(), chosen, _compiler(kernels, chosen), _cache(user_cache()), _open_files(), _memory()]


def _versions() -> Iterator[Finding]:
    shown = [f"Python {platform.python_version()}"]
    for name in _SHOWN:
        try:
            shown.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    lacking = [*unmet("promptmux", "server"), *unmet("fastapi")]
    if not lacking:
        yield Finding("versions", ", ".join(shown))
        return
    found = ", ".join(f"{one.name} {_installed(one.name) or 'is missing'}" for one in lacking)
    wanted = " ".join(f"'{one.name}{one.specifier}'" for one in lacking)
    yield Finding("versions", found, "problem", f"pip install {wanted}")


def unmet(distribution: str, extra: str = "") -> Iterator[Requirement]:
    """What an installed distribution requires, and has not got."""
    try:
        lines = requires(distribution) or []
    except PackageNotFoundError:
        return  # a checkout that was never installed says nothing of itself
    for line in lines:
        one = Requirement(line)
        if one.marker is not None and not one.marker.evaluate({"extra": extra}):
            continue
        installed = _installed(one.name)
        if installed is None or not one.specifier.contains(installed, prereleases=True):
            yield one


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _device(device: str, dtype: str) -> Finding:
    try:
        chosen = choose_device(device)
        number = str(choose_dtype(dtype, chosen)).removeprefix("torch.")
    except BackboneError as error:
        return Finding("device", device, "problem", str(error))
    if chosen.type == "cuda":
        import torch

        return Finding("device", f"{torch.cuda.get_device_name(chosen)}, {number}")
    found = f"{chosen.type}, {number}, {os.cpu_count()} cores"
    return Finding("device", f"{found}; {_processor()}")


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What of use to a forward the processor has, by its flags."""
    try:
        lines = cpuinfo.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return platform.machine()
    flags = set(next((line for line in lines if line.startswith(("flags", "Features"))), "").split())
    kinds = {
        "amx_bf16": "AMX",
        "avx512_bf16": "AVX512-BF16",
        "avx512f": "AVX512",
        "avx2": "AVX2",
        "bf16": "bf16",
    }
    return ", ".join(name for flag, name in kinds.items() if flag in flags) or platform.machine()


def _compiler(kernels: str, device: Finding) -> Finding:
    if kernels == "off":
        return Finding("compiler", "not needed (kernels off)")
    try:
        return Finding("compiler", find_compiler())
    except NativeUnavailable as error:
        if "cpu," not in device.found:
            return Finding("compiler", "none, and none needed on this device")
        verdict: Verdict = "problem" if kernels == "required" else "warning"
        return Finding("compiler", str(error), verdict, "attention is slower without: apt install g++")


def _cache(folder: Path) -> Finding:
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return Finding("cache folder", str(folder))
    advice = "fingerprints and kernels are made anew at each start: set XDG_CACHE_HOME to a folder that may be written"
    return Finding("cache folder", f"{folder} cannot be written", "warning", advice)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return Finding("open files", "no limit")
    if soft >= _FILES[1]:
        return Finding("open files", str(soft))
    verdict: Verdict = "problem" if soft < _FILES[0] else "warning"
    most = 65536 if hard == resource.RLIM_INFINITY else min(65536, hard)
    advice = f"each connection takes one: ulimit -n {max(most, soft)}, or LimitNOFILE=65536 in systemd's unit"
    return Finding("open files", str(soft), verdict, advice)


def _memory() -> Finding:
    free = free_memory(Path("/proc/meminfo"), _CGROUP)
    if free is None:
        return Finding("free memory", UNKNOWN)
    found = f"{free / 2**30:.1f} GiB"
    if free >= _MEMORY[1]:
        return Finding("free memory", found)
    verdict: Verdict = "problem" if free < _MEMORY[0] else "warning"
    return Finding(
        "free memory", found, verdict, "torch and the built-in model take about 1 GiB: free or add memory"
    )


def free_memory(meminfo: Path, cgroup: Path) -> int | None:
    """Bytes that this process may still take: the machine's, or its container's where these are fewer."""
    try:
        (line,) = (one for one in meminfo.read_text().splitlines() if one.startswith("MemAvailable:"))
        free = int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return None
    try:
        most = int((cgroup / "memory.max").read_text())
        stat = dict(one.split() for one in (cgroup / "memory.stat").read_text().splitlines())
        # What the page cache holds of files is given back when it is wanted.
        used = int((cgroup / "memory.current").read_text()) - int(stat.get("inactive_file", 0))
    except (OSError, ValueError):
        return free  # no container, or one without a limit
    return max(0, min(free, most - used))
