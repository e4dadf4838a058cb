"""Recording a program: its calls become operations in order, and what is not modelled is refused."""

import os
import signal
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
from loadtest.faults.redis_server import find_redis_server
from loadtest.faults.strace import NoStrace, find_strace
from loadtest.faults.syscalls import NotModelled, ProgramFailed, record, run_to_the_end
from loadtest.server_process import ROOT

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
        record([sys.executable, "-c", program], root, root.parent / "marks", patience=8)
    assert_ends(int((root / "child").read_text()))


WITH_A_CHILD_APART = """
import subprocess, time
from loadtest.server_process import leave_on_sigterm
leave_on_sigterm()
child = subprocess.Popen(["sleep", "300"], start_new_session=True)
try:
    open("made", "w").write(str(child.pid))
    os.rename("made", "child")
    time.sleep(60)
finally:
    child.terminate()
    child.wait()
"""


def test_a_program_that_is_cut_off_ends_what_it_has_in_a_session_of_its_own(root: Path) -> None:
    command, variables = [sys.executable, "-c", HEAD + WITH_A_CHILD_APART], {"PYTHONPATH": str(ROOT)}
    with pytest.raises(subprocess.TimeoutExpired):
        record(command, root, root.parent / "marks", variables=variables, patience=20)
    assert_ends(int((root / "child").read_text()))


def test_a_program_that_does_not_listen_is_made_to_end(tmp_path: Path) -> None:
    program = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "open('self', 'w').write(str(os.getpid())); time.sleep(60)"
    )
    with pytest.raises(subprocess.TimeoutExpired):
        run_to_the_end([sys.executable, "-c", program], tmp_path, {}, patience=8, grace=0.2)
    assert_ends(int((tmp_path / "self").read_text()))


ITS_REDIS = """
import asyncio, pathlib, sys
from loadtest.faults import crash_scenarios, crash_worker
async def waits(diary, place):
    pathlib.Path("made").write_text(str(place.server.pid))
    pathlib.Path("made").rename("redis")
    await asyncio.sleep(60)
crash_scenarios.SCENARIOS["redis"]["waits"] = {"run": waits}
sys.argv[1:] = ["redis", "waits", "run", "../marks"]
crash_worker.main()
"""


def test_the_worker_of_a_power_cut_leaves_no_redis_behind(tmp_path: Path) -> None:
    find_redis_server()
    (tmp_path / "root").mkdir()
    redis = tmp_path / "root" / "redis"
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ITS_REDIS]
    with subprocess.Popen(command, cwd=redis.parent, env=variables, start_new_session=True) as worker:
        while not redis.exists() and worker.poll() is None:
            time.sleep(0.05)
        worker.terminate()
    assert worker.returncode == 128 + signal.SIGTERM
    assert_ends(int(redis.read_text()))


def assert_ends(process: int) -> None:
    for _ in range(100):
        if not Path(f"/proc/{process}").exists():
            return
        time.sleep(0.05)
    pytest.fail(f"process {process} lives on")
