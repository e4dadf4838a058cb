"""What docs/guides/kubernetes.md and routing.md tell to type exists, and does what they say. A cluster is not at hand:
commands for one are checked by what they name."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from loadtest.faults.fetched_program import NoProgram
from loadtest.faults.proxy_process import find_haproxy
from promptmux.__main__ import build
from server.auth import SCOPES, parse_keys
from tests.deploy import agreement
from tests.deploy.gateway import CONFIGURATION
from tests.deploy.manifests import K8S, ROOT, named, rendered

GUIDE = (ROOT / "docs/guides/kubernetes.md").read_text(encoding="utf-8")
ROUTING = (ROOT / "docs/guides/routing.md").read_text(encoding="utf-8")
_KINDS = {"deploy": "Deployment", "deployment": "Deployment", "statefulset": "StatefulSet", "job": "Job"}


def commands(page: str) -> list[str]:
    """Every line of the page's shell blocks; continued ones in one."""
    blocks = re.findall(r"```sh\n(.*?)```", page, re.S)
    text = "\n".join(blocks).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip()]


def test_every_kustomization_that_is_applied_is_there() -> None:
    applied = {path for line in commands(GUIDE) for path in re.findall(r"-k my-fleet/(\S+)", line)}
    assert {"overlays/cpu", "overlays/kind", "train/once"} <= applied
    for path in applied:
        assert rendered(path)
    for folder in re.findall(r"^\| `((?:base|secrets|components|train)[^`]*)`", GUIDE, re.M):
        # The monitoring component is a part of its own, and may not be in this tree yet.
        assert (K8S / folder).exists() or folder == "components/monitoring", folder


def test_every_object_that_is_named_is_there() -> None:
    objects = [*rendered("overlays/cpu"), *rendered("train/once")]
    mentioned = [
        (_KINDS[kind], name)
        for line in commands(GUIDE)
        if line.startswith("kubectl")
        for kind, name in re.findall(r"\b(deploy|deployment|statefulset|job)[/ ](promptmux[a-z-]*)", line)
    ]
    assert len(mentioned) > 6
    for kind, name in mentioned:
        named(objects, kind, name)
    made = {name for line in commands(GUIDE) for name in re.findall(r"create secret generic (\S+)", line)}
    by_hand = {name for kind, name in (*agreement.MADE_BY_HAND, agreement.METRICS_KEY) if kind == "Secret"}
    assert made == by_hand
    assert {line.split()[2] for line in commands(GUIDE) if line.startswith("kubectl -n ")} == {"promptmux"}


def test_every_promptmux_command_has_these_flags() -> None:
    known = get_command(build()).commands  # type: ignore[attr-defined]
    found = [
        one
        for line in commands(GUIDE)
        for one in re.findall(r"\bpromptmux ((?:key|publish|doctor)\b[^)\"]*)", line)
    ]
    assert len(found) >= 6
    for text in found:
        name, *rest = shlex.split(text)
        flags = {flag for option in known[name].params for flag in option.opts}
        assert {one for one in rest if one.startswith("--")} <= flags, text


def test_the_secrets_are_filled_as_the_guide_says(tmp_path: Path) -> None:
    fleet = shutil.copytree(K8S, tmp_path / "my-fleet")
    typed = [line for line in commands(GUIDE) if line.startswith(("promptmux key", "my-fleet/secrets/"))]
    assert len(typed) == 3
    for line in typed:
        parts = shlex.split(line.replace("my-fleet", str(fleet)))
        if parts[0] == "promptmux":
            assert CliRunner().invoke(build(), parts[1:]).exit_code == 0
        else:
            subprocess.run(parts, check=True, capture_output=True, timeout=30)
    keys = parse_keys((fleet / "secrets/api-keys").read_text().splitlines())
    assert {key.name: key.scopes for key in keys} == {"web": {"infer"}, "ops": {"admin"}}
    assert "NOT-SET" not in (fleet / "secrets/store.env").read_text()


@pytest.mark.parametrize("scope", sorted(set(re.findall(r"--scope (\w+)", GUIDE))))
def test_every_scope_exists(scope: str) -> None:
    if scope == "metrics" and scope not in SCOPES:
        pytest.skip("NO SCOPE METRICS IN THIS TREE: Prometheus needs an admin key until it is there")
    assert scope in SCOPES


def test_no_key_and_no_password_is_in_the_repository() -> None:
    assert parse_keys((K8S / "secrets/api-keys").read_text().splitlines()) == ()
    assert "NOT-SET" in (K8S / "secrets/store.env").read_text()
    assert not re.search(r"[>#][0-9a-zA-Z]", (K8S / "secrets/users.acl").read_text())


def test_haproxy_takes_the_file_as_it_is() -> None:
    assert f"haproxy -c -f {CONFIGURATION.relative_to(ROOT)}" in commands(ROUTING)
    try:
        program = find_haproxy()
    except NoProgram as error:
        pytest.skip(f"NO HAPROXY, ITS CONFIGURATION IS NOT CHECKED: {error}")
    checked = subprocess.run(
        [program, "-c", "-f", CONFIGURATION], capture_output=True, text=True, timeout=60, check=False
    )
    assert checked.returncode == 0, checked.stderr


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
