"""Manifests agree with the code and with one another; a manifest that no longer does is noticed."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.disk_tier import FolderNotPrivate, private_folder
from tests.deploy import agreement
from tests.deploy.manifests import (
    K8S,
    OPTIONAL,
    OVERLAYS,
    ROOT,
    TRAININGS,
    Object,
    named,
    pod_templates,
    render_with,
    rendered,
    server,
)


def complaints(objects: list[Object]) -> list[str]:
    return [what for rule in agreement.ALL for what in rule(objects)]


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_agrees_with_the_code_and_itself(name: str) -> None:
    assert complaints(rendered(name)) == []


@pytest.mark.parametrize("component", OPTIONAL)
def test_so_do_the_optional_components(component: str, tmp_path: Path) -> None:
    assert complaints(render_with(tmp_path, "overlays/cpu", [component])) == []


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_agrees_with_the_command_line_and_the_fleet(name: str) -> None:
    objects = rendered(name)
    rules = (agreement.names, agreement.selectors, agreement.commands)
    assert [what for rule in rules for what in rule(objects)] == []
    assert list(agreement.trainers(objects, rendered("overlays/cpu"))) == []


def _spec(objects: list[Object]) -> Any:
    return server(objects)["spec"]


def _container(objects: list[Object]) -> Any:
    return _spec(objects)["containers"][0]


def _settings(objects: list[Object]) -> Any:
    return named(objects, "ConfigMap", "promptmux-settings")["data"]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda all: _settings(all).update(PROMPTMUX_LEAF_DELAY="5"), "no such setting"),
        (lambda all: _settings(all).update(PROMPTMUX_PORT="9000"), "are not the settings'"),
        (lambda all: _settings(all).update(PROMPTMUX_DRAIN_TIMEOUT="45"), "killed before it has drained"),
        (lambda all: _settings(all).update(PROMPTMUX_LEAVE_DELAY="0"), "leaves before"),
        (lambda all: _settings(all).update(PROMPTMUX_CACHE_DIR="/var/cache/promptmux"), "not below the root"),
        (lambda all: _settings(all).update(PROMPTMUX_DISK_CACHE_BYTES=str(10 * 2**30)), "pod is evicted"),
        (lambda all: _settings(all).update(PROMPTMUX_HOST_CACHE_BYTES=str(4 * 2**30)), "memory limit"),
        (lambda all: _settings(all).update(PROMPTMUX_API_KEYS_FILE="/tmp/keys"), "no Secret's volume"),
        (lambda all: _settings(all).update(PROMPTMUX_ADMIN_HOST="127.0.0.1"), "loopback"),
        (lambda all: _spec(all).update(terminationGracePeriodSeconds=30), "killed before it has drained"),
        (lambda all: _container(all)["ports"][1].update(containerPort=8002), "are not the settings'"),
        (lambda all: _container(all)["livenessProbe"]["httpGet"].update(path="/readyz"), "livenessProbe"),
        (lambda all: _container(all)["readinessProbe"].update(periodSeconds=10), "left before readiness"),
        (
            lambda all: _container(all)["readinessProbe"]["httpGet"].update(port="web"),
            "a probe asks port web",
        ),
        (lambda all: _container(all).update(command=["promptmux", "server"]), "no command promptmux server"),
        (lambda all: _container(all)["volumeMounts"].pop(1), "/tmp cannot be written"),
        (
            lambda all: _container(all)["env"][0]["valueFrom"]["secretKeyRef"].update(key="uri"),
            "has no {'uri'}",
        ),
        (lambda all: _container(all)["env"].pop(1), "as many lanes as the node has cores"),
        (lambda all: _spec(all)["volumes"][2]["secret"].update(secretName="keys"), "no Secret keys"),
        (lambda all: _spec(all).update(serviceAccountName="default"), "no ServiceAccount default"),
        (
            lambda all: server(all)["metadata"]["labels"].update({"app.kubernetes.io/component": "web"}),
            "does not select its own pods",
        ),
        (
            lambda all: named(all, "Service", "promptmux-admin")["spec"]["ports"][0].update(
                targetPort="http"
            ),
            "leads to http",
        ),
        (
            lambda all: named(all, "Service", "promptmux")["spec"]["selector"].update({"app": "x"}),
            "selects 0 workloads",
        ),
        (
            lambda all: named(all, "HorizontalPodAutoscaler", "promptmux")["spec"]["metrics"][0]["pods"][
                "metric"
            ].update(name="promptmux_queue_depth"),
            "no metric promptmux_queue_depth",
        ),
        (
            lambda all: named(all, "HorizontalPodAutoscaler", "promptmux")["spec"]["scaleTargetRef"].update(
                name="x"
            ),
            "no Deployment x",
        ),
    ],
)
def test_a_manifest_that_no_longer_agrees_is_noticed(
    spoil: Callable[[list[Object]], object], told: str, tmp_path: Path
) -> None:
    objects = copy.deepcopy(render_with(tmp_path, "overlays/cpu", ["hpa"]))
    spoil(objects)
    assert any(told in one for one in complaints(objects)), complaints(objects)


def test_a_volumes_root_is_no_cache_folder_and_one_below_it_is(tmp_path: Path) -> None:
    root = tmp_path / "volume"
    root.mkdir()
    root.chmod(0o2777)  # as a kubelet leaves an emptyDir with an fsGroup
    with pytest.raises(FolderNotPrivate):
        private_folder(root)
    private_folder(root / "server")


@pytest.mark.parametrize("component", ["hpa", "keda"])
@pytest.mark.parametrize("overlay", ["overlays/cpu", "overlays/gpu"])
def test_who_scales_sets_the_replicas_alone(overlay: str, component: str, tmp_path: Path) -> None:
    assert named(rendered(overlay), "Deployment", "promptmux")["spec"]["replicas"] >= 2
    objects = render_with(tmp_path, overlay, [component, "monitoring"])
    assert "replicas" not in named(objects, "Deployment", "promptmux")["spec"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_needs_nothing_that_a_bare_cluster_has_not(name: str) -> None:
    groups = {one["apiVersion"].rpartition("/")[0] for one in rendered(name)}
    assert groups <= {"", "apps", "networking.k8s.io", "policy"}


def test_the_adapter_serves_the_metric_that_the_autoscaler_asks_for() -> None:
    (rule,) = yaml.safe_load((K8S / "components/hpa/prometheus-adapter.yaml").read_text())["rules"]["custom"]
    scaler = yaml.safe_load((K8S / "components/hpa/horizontalpodautoscaler.yaml").read_text())
    asked = scaler["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert rule["name"] == {"matches": asked, "as": asked}
    assert rule["seriesQuery"].partition("{")[0] == asked
    assert asked in agreement.metric_names()


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_is_restarted_by_a_change_is_named_by_its_contents(name: str) -> None:
    objects = rendered(name)
    used = [
        one
        for _, template in pod_templates(objects)
        for kind, one, _ in agreement.from_outside(template)
        if kind in ("Secret", "ConfigMap")
    ]
    assert len(set(used)) >= 4
    assert all(re.fullmatch(r"promptmux-[a-z-]+-[a-z0-9]{10}", one) for one in used), used


def test_nothing_is_named_by_hand_that_the_guide_does_not_tell_to_make() -> None:
    guide = (ROOT / "docs/guides/kubernetes.md").read_text()
    for _, name in agreement.MADE_BY_HAND:
        assert name in guide


def test_a_gpu_is_asked_for_where_the_device_is_one() -> None:
    objects = rendered("overlays/gpu")
    assert _settings(objects)["PROMPTMUX_DEVICE"] == "cuda"
    assert _container(objects)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert _settings(objects)["PROMPTMUX_PORT"] == "8000"  # merged with the base's, not in their place


def test_two_trainings_never_wait_for_one_volume() -> None:
    claims = [
        one["metadata"]["name"]
        for training in TRAININGS
        for one in rendered(training)
        if one["kind"] == "PersistentVolumeClaim"
    ]
    assert len(claims) == len(set(claims)) == 2  # `many` keeps nothing


def test_an_indexed_training_has_a_file_for_each_of_its_pods() -> None:
    objects = rendered("train/many")
    job = named(objects, "Job", "promptmux-train-many")["spec"]
    assert job["completionMode"] == "Indexed"
    files = named(objects, "ConfigMap", "promptmux-trainings")["data"]
    assert {f"{index}.toml" for index in range(job["completions"])} == {
        one for one in files if one.endswith(".toml")
    }


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda one: None, ""),
        (lambda one: one["endpoints"][0].update(port="http"), "is scraped from"),
        (
            lambda one: one["selector"]["matchLabels"].update({"app.kubernetes.io/component": "redis"}),
            "from []",
        ),
        (
            lambda one: one["endpoints"][0]["authorization"]["credentials"].update(name="x"),
            "the scraper's key",
        ),
    ],
)
def test_prometheus_finds_the_admin_port(spoil: Callable[[Any], object], told: str) -> None:
    labels = {"app.kubernetes.io/name": "promptmux", "app.kubernetes.io/component": "server"}
    credentials = {"name": "promptmux-metrics-key", "key": "key"}
    spec = {
        "selector": {"matchLabels": labels},
        "endpoints": [{"port": "admin", "authorization": {"credentials": credentials}}],
    }
    spoil(spec)
    objects = [
        *rendered("overlays/cpu"),
        {"kind": "ServiceMonitor", "metadata": {"name": "own"}, "spec": spec},
    ]
    complained = list(agreement.scraped(objects))
    assert any(told in one for one in complained) if told else complained == []


def test_prometheus_finds_the_key_that_the_guide_has_made(tmp_path: Path) -> None:
    objects = render_with(tmp_path, "overlays/cpu", ["monitoring"])
    (endpoint,) = named(objects, "ServiceMonitor", "promptmux")["spec"]["endpoints"]
    credentials = endpoint["authorization"]["credentials"]
    assert credentials["key"] in named(objects, *agreement.METRICS_KEY)["data"]
    assert [one["metadata"]["name"] for one in objects].count(credentials["name"]) == 1  # no hash in its name
