"""Recording a program: its calls become operations in order, and what is not modelled is refused."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadtest.faults.operations import (
    Create,
    MakeFolder,
    Mark,
    Operation,
    Remove,
    Rename,
    Resize,
    Sync,
    Write,
    read_tree,
)
from loadtest.faults.power_cut import Disk
from loadtest.faults.strace import NoStrace, find_strace
from loadtest.faults.syscalls import NotModelled, ProgramFailed, record

HEAD = "import mmap, os, socket, sys, threading; marks = os.open('../marks', os.O_WRONLY | os.O_CREAT)\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    try:
        find_strace()
    except NoStrace as error:
        pytest.skip(f"NOTHING TRACED: {error}")
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def operations(root: Path, program: str) -> list[Operation]:
    command = [sys.executable, "-c", HEAD + program]
    return record(command, root, root.parent / "marks", ignore=lambda path: path.endswith("-ignored"))


def test_a_program_is_told_in_order(root: Path) -> None:
    program = r"""
os.mkdir('f')
made = os.open('f/a "name"\n', os.O_RDWR | os.O_CREAT)
os.pwrite(made, b'one\0two', 0)
os.ftruncate(made, 5)
os.write(marks, b'sync: mine\n')
os.fsync(made)
os.write(marks, b'CALL 1\nACK 1\n')
os.rename('f/a "name"\n', os.path.abspath('b'))
with open('c', 'ab') as file:
    file.write(b'end')
os.fdatasync(made)
os.fsync(os.open('f', os.O_RDONLY))
os.unlink('b', dir_fd=os.open('.', os.O_RDONLY))
open('c-ignored', 'w').write('x')
open('c').read()
ends = socket.socketpair(); ends[0].send(b'nothing to see')
print('nor here')
"""
    name = 'f/a "name"\n'
    assert operations(root, program) == [
        MakeFolder("f"),
        Create(name),
        Write(name, 0, b"one\0two"),
        Resize(name, 5),
        Sync(name, 4, "mine"),
        Mark("CALL 1"),
        Mark("ACK 1"),
        Rename(name, "b"),
        Create("c"),
        Write("c", None, b"end"),
        Sync("b", 10),
        Sync("f", 11),
        Remove("b"),
    ]


def test_threads_and_children_are_seen_and_the_replay_is_the_folder(root: Path) -> None:
    program = """
def work(name):
    for n in range(50):
        file = os.open(f'{name}-{n}', os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(file, os.urandom(3000)); os.fsync(file); os.write(file, b'more'); os.close(file)
        os.rename(f'{name}-{n}', name)
threads = [threading.Thread(target=work, args=(name,)) for name in 'xyz']
[thread.start() for thread in threads]
if os.fork() == 0:
    work('child'); os._exit(0)
os.wait()
[thread.join() for thread in threads]
"""
    done = operations(root, program)
    syncs = [(at, one.covers) for at, one in enumerate(done) if isinstance(one, Sync)]
    assert len(syncs) == 200
    assert all(covers <= at for at, covers in syncs)
    assert Disk({}, done).seen() == read_tree(root)


@pytest.mark.parametrize(
    ("program", "what"),
    [
        ("os.symlink('a', 'b')", "symlink"),
        ("file = os.open('a', os.O_RDWR); os.write(file, b'x')", "write to a"),
        ("file = os.open('a', os.O_RDWR); mmap.mmap(file, 3)", "mapped"),
        ("file = os.open('a', os.O_RDWR); os.unlink('a'); os.pwrite(file, b'x', 0)", "removed file"),
        ("os.rename('a', '../a')", "border"),
        ("os.chdir('/')", "chdir"),
    ],
)
def test_what_is_not_modelled_is_refused(root: Path, program: str, what: str) -> None:
    (root / "a").write_bytes(b"old")
    with pytest.raises(NotModelled, match=what):
        operations(root, program)


def test_a_program_that_fails_says_so(root: Path) -> None:
    with pytest.raises(ProgramFailed, match="exit code 1: went wrong"):
        operations(root, "sys.exit('went wrong')")


def test_a_program_that_does_not_end_is_ended_with_its_children(root: Path) -> None:
    program = "import os, time; open('child', 'w').write(str(os.fork() or os.getpid())); time.sleep(60)"
    with pytest.raises(subprocess.TimeoutExpired):
        record([sys.executable, "-c", program], root, root.parent / "marks", patience=2)
    child = int((root / "child").read_text())
    for _ in range(100):
        if not Path(f"/proc/{child}").exists():
            return
        time.sleep(0.05)
    pytest.fail(f"process {child} lives on")
