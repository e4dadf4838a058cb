"""Which ports are open to whom, as the NetworkPolicies say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deploy.manifests import (
    OVERLAYS,
    Object,
    named,
    of_kind,
    pod_templates,
    render_with,
    rendered,
    server,
)
from tests.deploy.reachable import Pod, may_reach

OUTSIDER = Pod(namespace="default")
NEIGHBOUR = Pod({"app": "something-else"})
OPERATOR = Pod({"promptmux.dev/admin-client": "true"})
PROMETHEUS = Pod({"app.kubernetes.io/name": "prometheus"}, "monitoring")
GATEWAY = Pod(namespace="ingress", namespace_labels={"promptmux.dev/gateway": "true"})
PUBLIC, ADMIN, REDIS = 8000, 8001, 6379


def labels(objects: list[Object], kind: str, name: str) -> dict[str, str]:
    return named(objects, kind, name)["spec"]["template"]["metadata"]["labels"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_public_port_is_open_and_the_admin_port_is_not(overlay: str) -> None:
    objects = rendered(overlay)
    own = server(objects)["metadata"]["labels"]
    reach = {
        port: [
            who
            for who in (OUTSIDER, NEIGHBOUR, OPERATOR, PROMETHEUS, GATEWAY)
            if may_reach(objects, who, own, port)
        ]
        for port in (PUBLIC, ADMIN, 22)
    }
    assert reach == {
        PUBLIC: [OUTSIDER, NEIGHBOUR, OPERATOR, PROMETHEUS, GATEWAY],
        ADMIN: [OPERATOR, PROMETHEUS],
        22: [],
    }


@pytest.mark.parametrize(
    "pretender",
    [
        Pod({"promptmux.dev/admin-client": "true"}, "default"),  # the label counts in our namespace alone
        Pod({"app.kubernetes.io/name": "prometheus"}, "default"),
        Pod({"app.kubernetes.io/name": "grafana"}, "monitoring"),
    ],
)
def test_a_label_alone_opens_nothing(pretender: Pod) -> None:
    objects = rendered("overlays/cpu")
    assert not may_reach(objects, pretender, server(objects)["metadata"]["labels"], ADMIN)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_servers_reach_redis(overlay: str) -> None:
    objects = rendered(overlay)
    target = labels(objects, "StatefulSet", "promptmux-redis")
    assert may_reach(objects, Pod(server(objects)["metadata"]["labels"]), target, REDIS)
    for who in (OUTSIDER, NEIGHBOUR, OPERATOR, PROMETHEUS, GATEWAY, Pod(target)):
        assert not may_reach(objects, who, target, REDIS)
    (policy,) = (
        one for one in of_kind(objects, "NetworkPolicy") if one["metadata"]["name"] == "promptmux-redis"
    )
    assert policy["spec"]["egress"] == []
    assert "Egress" in policy["spec"]["policyTypes"]


@pytest.mark.parametrize("training", ["train/once", "train/nightly", "train/many"])
def test_a_trainer_reaches_the_admin_port_and_nobody_reaches_it(training: str) -> None:
    objects = rendered("overlays/cpu")
    ((_, template),) = pod_templates(rendered(training))
    own = template["metadata"]["labels"]
    assert may_reach(objects, Pod(own), server(objects)["metadata"]["labels"], ADMIN)
    assert not may_reach(objects, OPERATOR, own, 22)


def test_with_gateway_only_the_public_port_is_open_to_the_gateway_alone(tmp_path: Path) -> None:
    objects = render_with(tmp_path, "overlays/cpu", ["gateway-only"])
    own = server(objects)["metadata"]["labels"]
    reach = [
        who
        for who in (OUTSIDER, NEIGHBOUR, OPERATOR, PROMETHEUS, GATEWAY)
        if may_reach(objects, who, own, PUBLIC)
    ]
    assert reach == [GATEWAY]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_service_leads_out_of_the_cluster(overlay: str) -> None:
    objects = rendered(overlay)
    services = of_kind(objects, "Service")
    assert {one["spec"].get("type", "ClusterIP") for one in services} == {"ClusterIP"}
    assert of_kind(objects, "Ingress", "HTTPRoute", "Gateway") == []
    assert named(objects, "Service", "promptmux-admin")["spec"]["clusterIP"] == "None"
    with_admin = [
        one["metadata"]["name"] for one in services if any(p["port"] == ADMIN for p in one["spec"]["ports"])
    ]
    assert with_admin == ["promptmux-admin"]


def test_without_its_policies_everything_would_be_open() -> None:
    objects = [one for one in rendered("overlays/cpu") if one["kind"] != "NetworkPolicy"]
    assert may_reach(objects, OUTSIDER, server(objects)["metadata"]["labels"], ADMIN)
