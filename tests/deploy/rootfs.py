"""Build an image's tree by the Dockerfile's steps, and run it as an engine would: `python -m tests.deploy.rootfs`.

Owns: the namespaces, the read-only run of the image's own command as its own user, and the report of what was seen.
Must not know: what is right; the tests judge. Needs root and util-linux; all mounts and processes end with this one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

from tests.deploy import mounts
from tests.deploy.dockerfile import read_dockerfile
from tests.deploy.image import Builder, Step, Tree
from tests.deploy.machine_packages import Packages

ROOT: Final = Path(__file__).resolve().parents[2]
TOKEN: Final = "pmx_for-this-run-only"
_PATIENCE: Final = 600.0  # seconds; only ever used up when something is broken
_PUBLIC: Final = "http://127.0.0.1:8000"
_open: Final = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def outer(arguments: list[str]) -> list[str]:
    """The command that runs this module in namespaces of its own."""
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]
    return [*unshare, sys.executable, "-m", "tests.deploy.rootfs", *arguments]


def lacking() -> str | None:
    """What this machine lacks for it; None for nothing."""
    if os.geteuid():
        return "root"
    for program in ("unshare", "setpriv", "chroot"):
        if shutil.which(program) is None:
            return f"{program} (util-linux, coreutils)"
    with tempfile.TemporaryDirectory() as folder:
        tried = "mount -t tmpfs none $0 && mkdir $0/u $0/s $0/m && " \
            "mount -t overlay -o lowerdir=/,upperdir=$0/u,workdir=$0/s none $0/m"  # fmt: skip
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", tried, folder], capture_output=True, text=True
        )
    return f"the right to mount an overlay ({done.stderr.strip()})" if done.returncode else None


def main() -> None:
    """Build, run, and print the report as JSON; what failed on the way is in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="cpu")
    parser.add_argument(
        "--download", action="store_true", help="every step as written, from the package indexes"
    )
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    given = parser.parse_args()
    file = read_dockerfile(ROOT / "docker" / "Dockerfile")
    file.arguments.update(one.split("=", 1) for one in given.build_arg)
    packages = Packages()
    steps: list[Step] = [] if given.download else [packages]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        mounts.overlay_memory(work)
        report: dict[str, Any] = {"target": given.target, "stood_in_for": packages.done}
        try:
            began = time.monotonic()
            tree = Builder(file, ROOT, work, steps=steps, environment=_client_settings()).build(given.target)
            report |= {
                "labels": tree.labels,
                "user": tree.user,
                "volumes": tree.volumes,
                "built": time.monotonic() - began,
            }
            if given.download:
                sbom = tree.path(tree.labels["promptmux.sbom.cyclonedx"])
                report["sbom"] = json.loads(sbom.read_text("utf-8"))
            container = Container(tree)
            report |= (container.train if given.target == "trainer" else container.serve)()
        finally:
            print(json.dumps(report, indent=1), flush=True)
            mounts.unmount(work)


def _client_settings() -> dict[str, str]:
    """What an engine hands to every RUN: how this machine reaches package indexes."""
    wanted = (
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "pip_index_url",
        "pip_cert",
        "pip_default_timeout",
        "pip_find_links",
        "ssl_cert_file",
    )
    return {name: value for name, value in os.environ.items() if name.lower() in wanted}


class Container:
    """A tree made read-only, with what an engine mounts into it."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        kept = {name: tree.path(name).stat() for name in dict.fromkeys(tree.volumes)}
        self._secrets = tree.path("/run/secrets")
        self._secrets.mkdir(parents=True)
        mounts.devices(tree.root / "dev")
        mounts.make_read_only(tree.root)
        mounts.tmpfs(tree.path("/tmp"), mode=0o1777, exec_=False)
        for name, seen in kept.items():  # a new volume is owned as the folder in the image is
            mounts.tmpfs(tree.path(name), mode=seen.st_mode & 0o7777)
            os.chown(tree.path(name), seen.st_uid, seen.st_gid)
        mounts.tmpfs(self._secrets)
        mounts.own_network()

    def serve(self) -> dict[str, Any]:
        """The image's own command with a key and the example prompts, asked, checked and ended."""
        digest = hashlib.sha256(TOKEN.encode()).hexdigest()
        (self._secrets / "api-keys").write_text(f"someone:infer:{digest}\n", "ascii")
        variables = {
            "PROMPTMUX_API_KEYS_FILE": "/run/secrets/api-keys",
            "PROMPTMUX_SEED_DIR": "/usr/share/promptmux/prompts",
        }
        report: dict[str, Any] = {"written_to_root": self._write("/usr/promptmux-was-here")}
        report["without_keys"] = self._finish([*self._tree.entrypoint, *self._tree.command])
        with tempfile.TemporaryFile("w+") as log:
            server = self._start([*self._tree.entrypoint, *self._tree.command], log, **variables)
            try:
                report["healthcheck_before"] = self._healthcheck()
                report["seconds_until_ready"] = self._until_ready(server)
                report["healthcheck"] = self._healthcheck()
                report["process"] = _status(_first_of(server))
                for name, path in (("healthz", "/healthz"), ("readyz", "/readyz")):
                    report[name] = _ask(path)
                body = {"task_id": "sentiment", "input": "I loved every minute of it."}
                report["classify"] = _ask("/classify", body, key=TOKEN)
                report["classify_without_key"] = _ask("/classify", body)
                report["doctor"] = self._finish([*self._tree.entrypoint, "doctor", "--json"])
                report["written"] = self._written()
                os.kill(_first_of(server), signal.SIGTERM)
                report["exit"] = server.wait(_PATIENCE)
                report["left_in_tmp"] = [path for path in self._written() if path.startswith("/tmp/")]
            finally:
                server.kill()
                server.wait()
                log.seek(0)
                report["log"] = log.read().splitlines()
        return report

    def train(self) -> dict[str, Any]:
        """A prompt that needs no training, made by another user than the image's, as the guide has it."""
        folder = self._tree.path("/work")
        os.chown(folder, 1000, 1000)
        for file in ("examples.jsonl", "train.toml"):
            shutil.copyfile(ROOT / "examples" / "topic" / file, folder / file)
        words = ["train", "train.toml", "--output", "runs/topic"]
        report = {"train": self._finish([*self._tree.entrypoint, *words], "1000:1000")}
        imports = "import datasets, sklearn.linear_model; from matplotlib.backends import backend_agg"
        report["imports"] = self._finish(["python", "-c", imports], "1000:1000")
        report["help"] = self._finish([*self._tree.entrypoint, *self._tree.command])
        return {**report, "written": self._written()}

    def _start(self, command: list[str], log: Any, user: str = "", **more: str) -> subprocess.Popen[str]:
        """As PID 1 of a PID namespace, as the image's user, without any right that root would have."""
        words: list[str | Path] = [
            "unshare",
            "--pid",
            "--fork",
            "--kill-child",
            f"--mount-proc={self._tree.root}/proc",
        ]
        words += ["setpriv", "--no-new-privs", "chroot", f"--userspec={user or self._tree.user}", "--groups="]
        words += [self._tree.root, "/usr/bin/env", "-C", self._tree.folder, *command]
        # Names in the image's PATH are found by `env`, inside; those above stand in this machine's.
        return subprocess.Popen(
            words, stdout=log, stderr=log, text=True, env={**self._tree.environment, **more}
        )

    def _finish(self, command: list[str], user: str = "") -> dict[str, Any]:
        with tempfile.TemporaryFile("w+") as log, self._start(command, log, user) as process:
            try:
                code = process.wait(_PATIENCE)
            finally:
                process.kill()
            log.seek(0)
            return {"exit": code, "said": log.read()}

    def _healthcheck(self) -> dict[str, Any]:
        assert self._tree.healthcheck
        return self._finish(self._tree.healthcheck)

    def _until_ready(self, server: subprocess.Popen[str]) -> float | None:
        began = time.monotonic()
        while server.poll() is None and time.monotonic() < began + _PATIENCE:
            if _ask("/readyz").get("status") == 200:
                return time.monotonic() - began
            time.sleep(0.1)
        return None

    def _write(self, path: str) -> str:
        try:
            self._tree.path(path).touch()
        except OSError as error:
            return str(error.strerror)
        return "written"

    def _written(self) -> dict[str, list[int]]:
        """Every file in what may be written, with its user and its mode."""
        found = {}
        for name in (*self._tree.volumes, "/tmp"):
            for file in self._tree.path(name).rglob("*"):
                seen = file.lstat()
                found["/" + str(file.relative_to(self._tree.root))] = [seen.st_uid, seen.st_mode & 0o777]
        return found


def _first_of(process: subprocess.Popen[str]) -> int:
    """The PID here of what `unshare` has started."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


def _status(pid: int) -> dict[str, str]:
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    wanted = ("Uid", "Gid", "Groups", "NoNewPrivs", "CapPrm", "CapEff", "NSpid")
    return {name: " ".join(value.split()) for name, _, value in lines if name in wanted}


def _ask(path: str, body: dict[str, Any] | None = None, key: str = "") -> dict[str, Any]:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    try:
        with _open(urllib.request.Request(_PUBLIC + path, data, headers), timeout=600) as answer:
            return {"status": answer.status, "body": json.loads(answer.read())}
    except urllib.error.HTTPError as error:
        return {"status": error.code, "body": json.loads(error.read())}
    except OSError as error:
        return {"status": 0, "body": str(error)}


if __name__ == "__main__":
    main()
