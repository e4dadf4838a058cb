"""Every manifest has the form that Kubernetes takes, and every pod is as locked up as it can be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deploy.manifests import (
    OPTIONAL,
    OVERLAYS,
    TRAININGS,
    Object,
    named,
    of_kind,
    pod_templates,
    render_with,
    rendered,
    server,
)
from tests.deploy.restricted import loose_ends
from tests.deploy.schemas import faults, versions


@pytest.mark.parametrize("name", [*OVERLAYS, *TRAININGS])
def test_every_object_fits_its_schema(name: str) -> None:
    objects = rendered(name)
    assert objects
    for version in versions():
        assert [fault for one in objects for fault in faults(one, version)] == []


@pytest.mark.parametrize("component", OPTIONAL)
def test_the_optional_components_fit_their_schemas(component: str, tmp_path: Path) -> None:
    objects = render_with(tmp_path, "overlays/cpu", [component])
    for version in versions():
        assert [fault for one in objects for fault in faults(one, version)] == []


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("Deployment", lambda one: one["spec"].update(replica=3)),
        (
            "Deployment",
            lambda one: one["spec"]["template"]["spec"].update(terminationGracePeriodSeconds="60s"),
        ),
        (
            "Deployment",
            lambda one: one["spec"]["template"]["spec"]["containers"][0].update(readynessProbe={}),
        ),
        ("Deployment", lambda one: one["spec"].pop("selector")),
        ("Service", lambda one: one["spec"]["ports"][0].pop("port")),
        ("NetworkPolicy", lambda one: one["spec"].update(ingres=[])),
        ("PodDisruptionBudget", lambda one: one["spec"].update(maxUnavailable=[1])),
        (
            "StatefulSet",
            lambda one: one["spec"]["template"]["spec"]["containers"][0]["ports"][0].update(port=1),
        ),
        ("ScaledObject", lambda one: one["spec"]["triggers"][0]["metadata"].update(threshold=64)),
        ("ScaledObject", lambda one: one["spec"].update(minReplicas=2)),
    ],
)
def test_a_field_that_is_wrong_is_noticed(
    kind: str, spoil: Callable[[Object], object], tmp_path: Path
) -> None:
    one = copy.deepcopy(of_kind(render_with(tmp_path, "overlays/cpu", ["keda"]), kind)[0])
    assert list(faults(one, versions()[0])) == []
    spoil(one)
    assert list(faults(one, versions()[0]))


def test_a_custom_resource_without_a_schema_is_noticed() -> None:
    assert list(faults({"apiVersion": "example.com/v1", "kind": "Unknown", "metadata": {}}, versions()[0]))


@pytest.mark.parametrize("name", [*OVERLAYS, *TRAININGS])
def test_every_pod_is_restricted(name: str) -> None:
    pods = list(pod_templates(rendered(name)))
    assert pods
    for workload, template in pods:
        assert list(loose_ends(template)) == [], workload["metadata"]["name"]


def _container(template: Object) -> Object:
    return template["spec"]["containers"][0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "loosen",
    [
        lambda pod: pod["spec"].update(hostNetwork=True),
        lambda pod: pod["spec"].update(automountServiceAccountToken=True),
        lambda pod: pod["spec"].pop("enableServiceLinks"),
        lambda pod: pod["spec"]["securityContext"].pop("runAsNonRoot"),
        lambda pod: pod["spec"]["securityContext"].update(runAsUser=0),
        lambda pod: pod["spec"]["securityContext"].update(seccompProfile={"type": "Unconfined"}),
        lambda pod: pod["spec"]["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
        lambda pod: pod["spec"]["volumes"][0].update(emptyDir={}),
        lambda pod: _container(pod)["securityContext"].update(allowPrivilegeEscalation=True),
        lambda pod: _container(pod)["securityContext"].update(readOnlyRootFilesystem=False),
        lambda pod: _container(pod)["securityContext"].update(
            capabilities={"drop": ["ALL"], "add": ["NET_RAW"]}
        ),
        lambda pod: _container(pod)["securityContext"].update(privileged=True),
        lambda pod: _container(pod)["resources"]["limits"].pop("memory"),
        lambda pod: _container(pod)["env"].append({"name": "X", "value": "pmx_abc"}),
        lambda pod: _container(pod)["ports"][0].update(hostPort=8000),
    ],
)
def test_a_looser_pod_is_noticed(loosen: Callable[[Object], object]) -> None:
    template = copy.deepcopy(server(rendered("overlays/cpu")))
    loosen(template)
    assert len(list(loose_ends(template))) == 1


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_namespace_takes_restricted_pods_alone(name: str) -> None:
    objects = rendered(name)
    labels = named(objects, "Namespace", "promptmux")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {one["metadata"]["namespace"] for one in objects if one["kind"] != "Namespace"} == {"promptmux"}
