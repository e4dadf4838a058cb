"""What a program and its children do to one folder, in order, as strace sees it.

Owns: how strace is called and how its output reads. Must not know: what becomes durable, or any experiment.

A call that changes the folder in a way that is not modelled is an error, never passed over: see `NotModelled`.
Writes through mapped memory are no calls at all; whoever uses this compares the result with the real folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from loadtest.faults.operations import (
    Create,
    Link,
    MakeFolder,
    Mark,
    Operation,
    Remove,
    Rename,
    Resize,
    Sync,
    Write,
)
from loadtest.faults.strace import find_strace

LABEL = "sync: "  # a mark that begins so names the next sync of its thread

_CALLS = (
    "open openat openat2 creat write pwrite64 writev pwritev pwritev2 ftruncate truncate fallocate fsync fdatasync"
    " sync syncfs rename renameat renameat2 unlink unlinkat rmdir mkdir mkdirat link linkat symlink symlinkat mknod"
    " mknodat sendfile copy_file_range splice mmap chdir fchdir io_uring_setup"
)
_LINE = re.compile(r"(\d+) +(.*)")
_CALL = re.compile(r"(\w+)\((.*)\) += (-?\w+)(.*)")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
_DESCRIPTOR = re.compile(r"(AT_FDCWD|\b\d+)<((?:\\x[0-9a-f]{2})*)>(\(deleted\))?")


class NotModelled(RuntimeError):
    """The program changed the folder by a call that the model of a disk does not know."""


class ProgramFailed(RuntimeError):
    """The program ended in an error; the message is the end of what it said."""


def run_to_the_end(
    command: Sequence[str],
    folder: Path,
    variables: Mapping[str, str],
    patience: float = 300.0,
    *,
    grace: float = 15.0,
) -> None:
    """Run a program in a folder. If it takes too long, or this program is to end, it is asked to end.

    What it has started in sessions of its own, it ends itself; after `grace` seconds it is made to end.

    Raises:
        ProgramFailed

    """
    with subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a tracer's end is that of the traced, too
    ) as running:
        try:
            _, said = running.communicate(timeout=patience)
        except BaseException:
            try:
                _signal(running.pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    running.wait(grace)
            finally:
                _signal(running.pid, signal.SIGKILL)
            raise
    if running.returncode:
        raise ProgramFailed(f"exit code {running.returncode}: {said.strip()[-4000:]}")


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def record(
    command: Sequence[str],
    root: Path,
    marks: Path,
    *,
    ignore: Callable[[str], bool] = lambda _: False,
    variables: Mapping[str, str] | None = None,
    patience: float = 300.0,
) -> list[Operation]:
    """Run `command` in `root` and tell what it did there, but for the paths to `ignore`; what it writes to `marks` are
    marks.

    Raises:
        NoStrace, NotModelled, ProgramFailed

    """
    root, marks = root.resolve(), marks.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "trace"
        calls = ",".join(f"?{call}" for call in _CALLS.split())  # ?: not every machine has every call
        tracing = ["-f", "--seccomp-bpf", "-y", "-v", "-xx", "-s", str(1 << 28), "-e", f"trace={calls}"]
        run_to_the_end(
            [*find_strace(), "-o", str(output), *tracing, *command], root, variables or {}, patience
        )
        parser = _Parser(root, marks, ignore)
        with output.open(encoding="ascii") as lines:
            for line in lines:
                parser.read(line.rstrip("\n"))
    return parser.operations


class _Parser:
    def __init__(self, root: Path, marks: Path, ignore: Callable[[str], bool]) -> None:
        self.operations: list[Operation] = []
        self._root, self._marks, self._ignore = str(root), str(marks), ignore
        self._unfinished: dict[str, tuple[str, int]] = {}
        self._labels: dict[str, str] = {}
        self._at_end: dict[str, bool] = {}  # of files opened for writing: whether `write` adds to their end

    def read(self, line: str) -> None:
        """One line of the trace. A call has its effect when it returns; only a mark when it begins."""
        found = _LINE.fullmatch(line)
        if found is None:
            return
        thread, text = found.groups()
        began = len(self.operations)
        if text.endswith("<unfinished ...>"):
            text = text.removesuffix("<unfinished ...>").rstrip()
            self._unfinished[thread] = (text, began)
            if text.startswith("write(") and (call := _DESCRIPTOR.search(text)):
                self._mark(thread, call, text)
            return
        if resumed := re.match(r"<\.\.\. \w+ resumed>", text):
            head, began = self._unfinished.pop(thread)
            text = head + text[resumed.end() :]
        call = _CALL.fullmatch(text)
        if call is None or call[3] in ("-1", "?"):  # signals and ends of processes; calls that failed
            return
        result = int(call[3], 0)  # an address, if it is that of a mapping
        self._call(thread, call[1], call[2], result, call[4], began, was_unfinished=resumed is not None)

    def _call(
        self, thread: str, name: str, text: str, result: int, after: str, began: int, *, was_unfinished: bool
    ) -> None:
        descriptors = list(_DESCRIPTOR.finditer(text))
        if name == "write" and descriptors and not was_unfinished:
            self._mark(thread, descriptors[0], text)
        match name:
            case "open" | "openat" | "openat2" | "creat":
                self._open(text, after)
            case "write" | "writev" | "pwrite64" | "pwritev" | "pwritev2":
                self._write(name, descriptors, text, result)
            case "ftruncate" | "truncate":
                path = self._of(descriptors[0]) if name == "ftruncate" else self._paths(text)[0]
                self._add(Resize(path, int(text.rpartition(", ")[2])) if path is not None else None)
            case "fsync" | "fdatasync":
                label = self._labels.pop(thread, "")
                if (path := self._of(descriptors[0])) is not None:
                    self._add(Sync(path, began, label))
            case "mkdir" | "mkdirat":
                self._add(*(MakeFolder(path) for path in self._paths(text) if path is not None))
            case "unlink" | "unlinkat" | "rmdir":
                self._add(*(Remove(path) for path in self._paths(text) if path is not None))
            case "rename" | "renameat" | "renameat2" | "link" | "linkat":
                source, target = self._paths(text)
                if source is not None and target is not None:
                    self._add((Rename if name.startswith("rename") else Link)(source, target))
                elif source != target or "EXCHANGE" in text:
                    raise NotModelled(f"{name} over the folder's border, or an exchange")
            case "chdir" | "fchdir":
                # Paths of the calls without a folder's descriptor are read from here.
                folder = _text(_STRING.search(text)[1]) if name == "chdir" else _text(descriptors[0][2])  # type: ignore[index]
                if os.path.normpath(os.path.join(self._root, folder)) != self._root:
                    raise NotModelled(f"chdir away from the folder, to {folder}")
            case "mmap":
                shared = "MAP_SHARED" in text and "PROT_WRITE" in text
                if shared and descriptors and self._of(descriptors[0]) is not None:
                    raise NotModelled(f"a file mapped for writing: {self._of(descriptors[0])}")
            case _:
                touched = [self._of(one) for one in descriptors] + self._paths(text)
                if name == "io_uring_setup" or any(path is not None for path in touched):
                    raise NotModelled(name)

    def _open(self, text: str, after: str) -> None:
        opened = _DESCRIPTOR.search(f"0{after}")
        path = self._of(opened) if opened else None
        if path is None or not re.search("O_WRONLY|O_RDWR|O_CREAT", text):
            return
        if "O_TMPFILE" in text:
            raise NotModelled("a file without a name")
        if "O_CREAT" in text:
            self._add(Create(path))
        if "O_TRUNC" in text:
            self._add(Resize(path, 0))
        if re.search("O_WRONLY|O_RDWR", text):
            self._at_end[path] = re.search("O_APPEND|O_TRUNC|O_EXCL", text) is not None

    def _write(self, name: str, descriptors: Sequence[re.Match[str]], text: str, result: int) -> None:
        path = self._of(descriptors[0]) if descriptors else None
        if path is None:
            return
        strings = list(_STRING.finditer(text))
        if any(string[2] for string in strings):
            raise NotModelled("a write too long to be seen whole")
        data = b"".join(_bytes(string[1]) for string in strings)[:result]
        offset = None
        if name == "pwrite64":
            offset = int(text.rpartition(", ")[2])
        elif name != "write" or not self._at_end.get(path, False):
            # A file that is opened in the middle has a position that the trace does not tell.
            raise NotModelled(f"{name} to {path}")
        self._add(Write(path, offset, data))

    def _mark(self, thread: str, descriptor: re.Match[str], text: str) -> None:
        if _text(descriptor[2]) != self._marks or (said := _STRING.search(text)) is None:
            return
        for line in _text(said[1]).splitlines():
            if line.startswith(LABEL):
                self._labels[thread] = line.removeprefix(LABEL)
            else:
                self._add(Mark(line))

    def _add(self, *operations: Operation | None) -> None:
        self.operations += [operation for operation in operations if operation is not None]

    def _of(self, descriptor: re.Match[str]) -> str | None:
        """The path within the folder that a descriptor leads to; None: elsewhere, or to be ignored."""
        whole = _text(descriptor[2])
        path = self._within(whole) if whole.startswith("/") else None  # else it is a pipe or a socket
        if path is not None and descriptor[3]:
            raise NotModelled(f"a call on a removed file: {path}")
        return path

    def _paths(self, text: str) -> list[str | None]:
        """The paths that a call names, each beside the folder it starts from, if it tells one."""
        pattern = re.compile(f"(?:{_DESCRIPTOR.pattern}, )?{_STRING.pattern}")
        return [
            self._within(os.path.join(_text(found[2] or ""), _text(found[4])))
            for found in pattern.finditer(text)
        ]

    def _within(self, path: str) -> str | None:
        whole = os.path.normpath(os.path.join(self._root, path))
        inside = os.path.relpath(whole, self._root)
        if inside == ".":
            return ""
        return None if inside.startswith("..") or self._ignore(inside) else inside


def _bytes(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


def _text(escaped: str) -> str:
    return os.fsdecode(_bytes(escaped))
