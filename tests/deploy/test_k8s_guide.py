"""What docs/guides/kubernetes.md and routing.md tell to type does what they say, as far as no cluster is needed. What
their commands name is looked at by tests/docs/test_not_run.py."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from loadtest.faults.fetched_program import NoProgram
from loadtest.faults.proxy_process import find_haproxy
from loadtest.ports import free_port
from loadtest.server_process import process
from promptmux.__main__ import build
from server.auth import parse_keys
from tests.deploy import agreement
from tests.deploy.gateway import CONFIGURATION
from tests.deploy.manifests import K8S, ROOT, named, render, rendered

GUIDE = (ROOT / "docs/guides/kubernetes.md").read_text(encoding="utf-8")
ROUTING = (ROOT / "docs/guides/routing.md").read_text(encoding="utf-8")


def commands(page: str) -> list[str]:
    """Every line of the page's shell blocks; continued ones in one."""
    blocks = re.findall(r"```sh[^\n]*\n(.*?)```", page, re.S)
    text = "\n".join(blocks).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip()]


def test_every_folder_of_the_table_is_there() -> None:
    listed = re.findall(r"^\| `((?:base|secrets|components|train)[^`]*)`", GUIDE, re.M)
    assert len(listed) >= 7
    for folder in listed:
        assert (K8S / folder).exists(), folder


def test_every_secret_that_a_person_makes_has_its_command() -> None:
    made = {name for line in commands(GUIDE) for name in re.findall(r"create secret generic (\S+)", line)}
    assert made == {name for kind, name in agreement.MADE_BY_HAND if kind == "Secret"}


def test_the_secrets_are_filled_as_the_guide_says(tmp_path: Path) -> None:
    fleet = shutil.copytree(K8S, tmp_path / "my-fleet")
    typed = [
        line
        for line in commands(GUIDE)
        if line.startswith(("promptmux key", "printf", "../my-fleet/secrets/"))
    ]
    assert len(typed) == 4
    for line in typed:
        line = line.replace("../my-fleet", str(fleet))
        if line.startswith("printf"):
            asked, told = re.fullmatch(r'printf %s "\$\((.*)\)" > (\S+)', line).groups()  # type: ignore[union-attr]
            key = CliRunner().invoke(build(), shlex.split(asked)[1:]).stdout.strip()
            assert key.startswith("pmx_")
            assert told == f"{fleet}/secrets/metrics-key"
            continue
        parts = shlex.split(line)
        if parts[0] == "promptmux":
            assert CliRunner().invoke(build(), parts[1:]).exit_code == 0
        else:
            subprocess.run(parts, check=True, capture_output=True, timeout=600)
    keys = parse_keys((fleet / "secrets/api-keys").read_text().splitlines())
    assert {key.name: key.scopes for key in keys} == {
        "web": {"infer"}, "ops": {"admin"}, "prometheus": {"metrics"}
    }  # fmt: skip
    assert "NOT-SET" not in (fleet / "secrets/store.env").read_text()


@pytest.mark.parametrize("block", re.findall(r"```yaml\n((?:components|patches):.*?)```", GUIDE, re.S))
def test_what_the_guide_adds_to_an_overlay_renders(block: str, tmp_path: Path) -> None:
    overlay = shutil.copytree(K8S, tmp_path / "my-fleet") / "overlays/cpu"
    file, shown = overlay / "kustomization.yaml", yaml.safe_load(block)
    lines = yaml.safe_load(file.read_text())
    assert set(lines["components"]) <= set(shown.get("components", lines["components"]))  # the whole list
    if "patches" in shown:
        lines["components"].append("../../components/monitoring")
    file.write_text(yaml.safe_dump(lines | shown))
    objects = render(overlay)
    ours = [one for one in objects if one["apiVersion"].startswith("monitoring.coreos.com/")]
    assert {one["kind"] for one in ours} == {"ServiceMonitor", "PrometheusRule"}
    if "patches" in shown:
        assert {one["metadata"]["labels"].get("release") for one in ours} == {"kube-prometheus-stack"}
        assert [one for one in objects if "release" in one["metadata"].get("labels", {})] == ours


def test_what_the_guide_publishes_is_there() -> None:
    (line,) = [line for line in commands(GUIDE) if "promptmux publish" in line]
    assert (ROOT / line.split()[-1]).is_file()


def test_the_copy_with_the_keys_is_outside_of_the_checkout() -> None:
    assert commands(GUIDE)[0] == "cp -r deploy/k8s ../my-fleet"
    assert not re.search(r"(?<!\.\./)my-fleet/", GUIDE)


def test_every_look_into_many_logs_says_how_far_back() -> None:
    """By a selector kubectl shows ten lines of each pod, unless it is told."""
    lines = [
        line
        for page in [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
        for line in page.read_text(encoding="utf-8").splitlines()
        if re.search(r"kubectl .*\blogs .*(-l |--selector)", line)
    ]
    assert len(lines) >= 4
    assert [line for line in lines if "--tail" not in line] == []


def test_no_key_and_no_password_is_in_the_repository() -> None:
    assert parse_keys((K8S / "secrets/api-keys").read_text().splitlines()) == ()
    assert "NOT-SET" in (K8S / "secrets/store.env").read_text()
    assert (K8S / "secrets/metrics-key").read_text() == "NOT-SET"
    assert not re.search(r"[>#][0-9a-zA-Z]", (K8S / "secrets/users.acl").read_text())


def haproxy() -> Path:
    try:
        return find_haproxy()
    except NoProgram as error:
        pytest.skip(f"NO HAPROXY, ITS CONFIGURATION IS NOT CHECKED: {error}")


def test_haproxy_takes_the_file_as_it_is() -> None:
    assert f"haproxy -c -f {CONFIGURATION.relative_to(ROOT)}" in commands(ROUTING)
    checked = subprocess.run(
        [haproxy(), "-c", "-f", CONFIGURATION], capture_output=True, text=True, timeout=600, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_haproxy_starts_with_it_wherever_it_is(tmp_path: Path) -> None:
    """`haproxy -c` does not see that a folder is missing: it makes no socket."""
    text = CONFIGURATION.read_text()
    assert re.findall(r"^[^#\n]*\s(/(?:run|var|etc|tmp|home)/\S*)", text, re.M) == []
    port = free_port()
    assert text.count("bind :8080\n") == 1
    file = tmp_path / "haproxy.cfg"
    file.write_text(text.replace("bind :8080\n", f"bind 127.0.0.1:{port}\n"))
    with process([str(haproxy()), "-db", "-f", str(file)]) as started:
        end, status = time.monotonic() + 60, 0
        while status == 0:
            assert started.popen.poll() is None, started.said()
            assert time.monotonic() < end, started.said()
            with contextlib.suppress(httpx.TransportError):
                status = httpx.get(f"http://127.0.0.1:{port}/classify", timeout=600).status_code
            time.sleep(0.02)
        assert status == 503  # its own: of its servers' names this machine knows none


def test_the_ingress_routes_as_the_file_does() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", ROUTING, re.S)
    told = yaml.safe_load(block)["metadata"]["annotations"]
    lines = [line.strip() for line in CONFIGURATION.read_text().splitlines()]
    assert f"balance {told['haproxy.org/load-balance']}" in lines
    for line in told["haproxy.org/backend-config-snippet"].split("\n"):
        assert line in lines or not line
    for shown in re.findall(r"`(balance [^`]+|hash-[^`]+ [^`]+)`", ROUTING):
        assert shown in lines or shown == "hash-key addr", shown


def test_the_headless_service_that_gateways_ask_is_there() -> None:
    service = named(rendered("overlays/cpu"), "Service", "promptmux-pods")
    host = f"promptmux-pods.promptmux.svc.cluster.local:{service['spec']['ports'][0]['port']}"
    assert host in CONFIGURATION.read_text()
    assert service["spec"]["clusterIP"] == "None"
