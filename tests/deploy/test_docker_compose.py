"""docker/compose.yaml and what it mounts: nothing is named that is not there, and nothing is open that need not be."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from promptmux.__main__ import build
from server.auth import parse_keys
from server.settings import Settings, unknown_variables
from tests.deploy.dockerfile import read_dockerfile
from tests.deploy.test_docker_files import image_variables

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
# What only compose.yaml reads: they stand in the shell of whoever calls compose, never in a container.
OF_COMPOSE = {f"PROMPTMUX_{name}" for name in ("IMAGE", "TARGET", "PORTS", "ADMIN_PORTS", "METRICS_TASKS")}


def read(name: str) -> Any:
    return yaml.safe_load((DOCKER / name).read_text("utf-8"))


def mounts(service: str) -> dict[str, str]:
    """Where in the container → what it is: a folder or file of the checkout, or a volume's name."""
    parts = (text.split(":") for text in SERVICES[service]["volumes"])
    return {part[1]: part[0] for part in parts}


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What docker/make-secrets.sh makes, by this checkout's promptmux."""
    folder = tmp_path_factory.mktemp("docker")
    command = folder / "promptmux"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m promptmux "$@"\n', "utf-8")
    command.chmod(0o755)
    done = make_secrets(folder)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"pmx_\S+", done.stdout)) == 2
    again = make_secrets(folder)
    assert again.returncode == 1
    assert "is there already" in again.stderr
    return folder / "secrets"


def make_secrets(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", DOCKER / "make-secrets.sh", folder],
        env={"PATH": "/usr/bin:/bin", "PROMPTMUX": str(folder / "promptmux")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_compose_itself_understands_it() -> None:
    program = shutil.which("docker")
    has_compose = (
        program and not subprocess.run([program, "compose", "version"], capture_output=True).returncode
    )
    if not has_compose:
        pytest.skip("no `docker compose` here: compose.yaml was not read by compose itself")
    for files in (["compose.yaml"], ["compose.yaml", "compose.cuda.yaml"]):
        flags = [part for name in files for part in ("-f", str(DOCKER / name))]
        done = subprocess.run(
            [program, "compose", *flags, "config", "--quiet"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def test_the_image_is_one_of_the_dockerfile_s() -> None:
    build = SERVICES["server"]["build"]
    assert (DOCKER / build["context"] / build["dockerfile"]).samefile(DOCKER / "Dockerfile")
    stages = read_dockerfile(DOCKER / "Dockerfile").stages
    assert build["target"] == "${PROMPTMUX_TARGET:-cpu}"
    assert SERVICES["server"]["image"] == f"${{PROMPTMUX_IMAGE:-promptmux:{build['target']}}}"
    on_gpu = read("compose.cuda.yaml")["services"]["server"]
    assert on_gpu["image"] == f"${{PROMPTMUX_IMAGE:-promptmux:{on_gpu['build']['target']}}}"
    assert on_gpu["environment"] == {
        "PROMPTMUX_DEVICE": "cuda"
    }  # else it would serve from the CPU, and not say so
    assert {"cpu", read("compose.cuda.yaml")["services"]["server"]["build"]["target"]} <= stages.keys()


def test_other_images_have_a_version() -> None:
    for name in SERVICES.keys() - {"server"}:
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+(-[a-z]+)?", SERVICES[name]["image"]), name


def test_the_variables_of_both_kinds_are_known() -> None:
    text = (DOCKER / "compose.yaml").read_text("utf-8") + (DOCKER / "compose.cuda.yaml").read_text("utf-8")
    assert set(re.findall(r"\$\{(\w+)", text)) == OF_COMPOSE
    for name in OF_COMPOSE:
        assert re.search(rf"^#   {name} ", text, re.M), f"{name} is not explained at the top"
    environment = SERVICES["server"]["environment"]
    assert not unknown_variables(environment)
    assert not unknown_variables(set(environment) & OF_COMPOSE)


def test_every_file_that_is_mounted_is_there() -> None:
    for service in SERVICES:
        for source in mounts(service).values():
            if source.startswith("."):
                assert (DOCKER / source).exists(), f"{service}: {source}"
            else:
                assert source in COMPOSE["volumes"], f"{service}: {source}"


def test_every_secret_is_declared_used_and_made() -> None:
    used = {name for service in SERVICES.values() for name in service["secrets"]}
    assert used == COMPOSE["secrets"].keys()
    made = (DOCKER / "make-secrets.sh").read_text("utf-8")
    for name, secret in COMPOSE["secrets"].items():
        assert secret["file"] == f"secrets/{name}"
        assert f"$made/{name}" in made, name


def test_every_secret_that_is_read_is_given() -> None:
    texts = {
        "server": json.dumps(SERVICES["server"]["environment"]),
        "redis": (DOCKER / "redis" / "redis.conf").read_text("utf-8"),
        "prometheus": (DOCKER / "prometheus" / "prometheus.yaml").read_text("utf-8"),
        "grafana": json.dumps(SERVICES["grafana"]["environment"]),
    }
    assert texts.keys() == SERVICES.keys()
    for service, text in texts.items():
        read_there = re.findall(r"/run/secrets/([a-z.-]+)", text)
        assert sorted(read_there) == sorted(SERVICES[service]["secrets"]), service


def test_only_the_public_port_is_open_to_others() -> None:
    public, admin = Settings().port, Settings().admin_port
    ports = {name: service.get("ports", []) for name, service in SERVICES.items()}
    assert ports["redis"] == []
    open_to_all = [port for given in ports.values() for port in given if not port.startswith("127.0.0.1:")]
    assert open_to_all == [f"${{PROMPTMUX_PORTS:-{public}}}:{public}"]
    assert f"127.0.0.1:${{PROMPTMUX_ADMIN_PORTS:-{admin}}}:{admin}" in ports["server"]
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    assert SERVICES["redis"]["networks"] == ["inside"]


@pytest.mark.parametrize("name", SERVICES)
def test_each_container_has_no_more_rights_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc"} & service.keys()
    if name != "server":  # the image says so itself
        assert int(service["user"].split(":")[0]) > 0
    assert all(text.endswith(":ro") for text in service["volumes"] if text.startswith("."))


def test_the_server_has_time_to_finish() -> None:
    settings = Settings()
    assert (
        int(SERVICES["server"]["stop_grace_period"].removesuffix("s"))
        > settings.drain_timeout + settings.leave_delay
    )


def test_what_the_server_writes_has_a_place() -> None:
    stage = read_dockerfile(DOCKER / "Dockerfile").stages["runtime"]
    volumes = set(stage.of("VOLUME")[0].words())
    assert volumes | {"/tmp"} == set(mounts("server")) | set(SERVICES["server"]["tmpfs"])


def test_prometheus_asks_every_server_for_its_metrics() -> None:
    configuration = read("prometheus/prometheus.yaml")
    inside = mounts("prometheus")
    assert configuration["rule_files"] == ["/etc/prometheus/alerts.yaml"]
    assert inside["/etc/prometheus/alerts.yaml"] == "./prometheus/alerts.yaml"
    flags = dict(flag.split("=", 1) for flag in SERVICES["prometheus"]["command"])
    assert inside[flags["--config.file"]] == "./prometheus/prometheus.yaml"
    assert inside[flags["--storage.tsdb.path"]] == "prometheus"
    (job,) = configuration["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    assert found["names"] == ["server"]
    assert found["names"][0] in SERVICES
    assert found["port"] == Settings().admin_port
    assert '"/metrics"' in (ROOT / "server" / "admin.py").read_text("utf-8")
    assert job["metrics_path"] == "/metrics"
    assert set(SERVICES["prometheus"]["networks"]) & set(SERVICES["server"]["networks"])


def test_the_alerts_are_prometheus_s_rules() -> None:
    groups = read("prometheus/alerts.yaml")["groups"]
    assert groups
    for group in groups:
        assert group["name"]
        for rule in group["rules"]:
            assert rule["expr"]
            assert "alert" in rule or "record" in rule


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    inside = mounts("grafana")
    (source,) = read("grafana/datasource.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert inside["/etc/grafana/provisioning/datasources/promptmux.yaml"] == "./grafana/datasource.yaml"
    (provider,) = read("grafana/dashboards.yaml")["providers"]
    assert inside["/etc/grafana/provisioning/dashboards/promptmux.yaml"] == "./grafana/dashboards.yaml"
    folder = provider["options"]["path"]
    (dashboard,) = [place for place in inside if place.startswith(f"{folder}/")]
    assert SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == dashboard
    text = (DOCKER / inside[dashboard]).read_text("utf-8")
    assert json.loads(text)["panels"]
    uids = set(re.findall(r'"datasource":\s*\{[^}]*"uid":\s*"([^"]+)"', text))
    assert {uid for uid in uids if not uid.startswith(("$", "-- "))} <= {source["uid"]}


def test_the_secrets_fit_the_server_and_are_its_owner_s_alone(secrets: Path) -> None:
    assert {file.name for file in secrets.iterdir()} == COMPOSE["secrets"].keys()
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in secrets.iterdir()} == {0o644}
    assert not [file for file in secrets.parent.iterdir() if file.name.startswith("secrets.")]
    keys = parse_keys((secrets / "api-keys").read_text("utf-8").splitlines())
    assert {key.name: set(key.scopes) for key in keys} == {
        "web": {"infer"},
        "ops": {"admin"},
        "prometheus": {"metrics"},
    }
    settings = Settings.load(["--config", str(secrets / "server.toml")])
    host = re.fullmatch(r"redis://promptmux:[0-9a-f]{48}@(\w+):6379/0", settings.store)
    assert host
    assert host[1] in SERVICES
    assert len((secrets / "grafana-password").read_text()) == 48


def in_the_container(secrets: Path) -> dict[str, str]:
    """The server's variables: the image's, then compose's, with the files where they lie here."""
    variables = image_variables() | SERVICES["server"]["environment"]
    return {
        name: value.replace("/run/secrets", str(secrets))
        for name, value in variables.items()
        if name.startswith("PROMPTMUX_")
    }


def test_the_store_is_the_redis_beside_it(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in in_the_container(secrets).items():
        monkeypatch.setenv(name, value)
    assert re.fullmatch(r"redis://promptmux:\w+@redis:6379/0", Settings.load().store)
    monkeypatch.setenv("PROMPTMUX_STORE", "file:///store/prompts")  # as the image once had it
    assert Settings.load().store == "file:///store/prompts"


def test_doctor_looks_at_the_server_s_store(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in in_the_container(secrets).items():
        monkeypatch.setenv(name, value)
    looked: list[str] = []

    async def examine(url: str, *, deep: bool) -> list[object]:
        looked.append(url)
        return []

    monkeypatch.setattr("prompt_store.checkup.examine", examine)
    CliRunner().invoke(build(), ["doctor"])
    assert looked == [Settings.load().store]
