"""What manifests must agree about with the code and with one another.

Owns: these rules, each a function from the objects of one kustomization to complaints. Must not know: which
kustomizations there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from prometheus_client import CollectorRegistry
from typer.main import get_command

from promptmux.__main__ import build
from promptmux.commands.options import AdminKey, AdminServer
from server import Settings
from server.metrics import Metrics
from server.settings import unknown_variables
from tests.deploy.manifests import (
    Object,
    containers,
    named,
    of_kind,
    pod_templates,
    quantity,
    server,
    variables,
)
from tests.deploy.reachable import selects

# Made by hand, once, as docs/guides/kubernetes.md says: they hold keys that no file here has.
MADE_BY_HAND = {
    ("Secret", "promptmux-trainer-key"): {"key"},
    ("PersistentVolumeClaim", "promptmux-training"): set(),
}
METRICS_KEY = ("Secret", "promptmux-metrics-key")  # for Prometheus
# Of the fleet, which a training joins.
_OF_THE_FLEET = {("ServiceAccount", "promptmux")}
_MODEL_BYTES = 1.5 * 2**30  # torch, the built-in model, and what a forward needs
_CLI_VARIABLES = {
    one.envvar for alias in (AdminKey, AdminServer) for one in alias.__metadata__ if hasattr(one, "envvar")
}


def settings(objects: Sequence[Object]) -> Settings:
    """The server's settings as it would read them."""
    given = {name.removeprefix("PROMPTMUX_").lower(): value for name, value in variables(objects).items()}
    known = {name: value for name, value in given.items() if name in Settings.model_fields}
    return Settings.model_validate({**known, "store": "redis://stands-in-a-secret"})


def settings_and_sizes(objects: Sequence[Object]) -> Iterator[str]:
    """The server's variables are settings, and go with ports, volumes and times."""
    (container,) = server(objects)["spec"]["containers"]
    spec = server(objects)["spec"]
    yield from (f"no such setting: {name}" for name in unknown_variables(
        {*variables(objects), *(one["name"] for one in container["env"])}
    ))  # fmt: skip
    read = settings(objects)
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    if ports != {"http": read.port, "admin": read.admin_port}:
        yield f"ports {ports} are not the settings' {read.port} and {read.admin_port}"
    if {read.host, read.admin_host} & {"127.0.0.1", "localhost"}:
        yield "it listens on loopback"
    if spec["terminationGracePeriodSeconds"] < read.leave_delay + read.drain_timeout + 10:
        yield "it is killed before it has drained"
    if read.leave_delay < 5:
        yield "it leaves before Services and gateways hear of it"
    mounts = {PurePosixPath(one["mountPath"]): one["name"] for one in container["volumeMounts"]}
    volumes = {one["name"]: one for one in spec["volumes"]}
    cache = PurePosixPath(str(read.cache_dir))
    roots = [root for root in mounts if root in cache.parents]
    if not roots:
        yield f"the cache folder {cache} is not below the root of a volume"
        return
    (room,) = (volumes[mounts[root]] for root in roots)
    if read.disk_cache_bytes + 2**30 > quantity(room["emptyDir"]["sizeLimit"]):
        yield "the disk tier may fill its volume, and the pod is evicted"
    memory = quantity(container["resources"]["limits"]["memory"])
    on_host = read.host_cache_bytes + (read.prompt_cache_bytes if read.device in ("auto", "cpu") else 0)
    if on_host + _MODEL_BYTES > memory:
        yield "the tiers and the model do not fit the memory limit"
    keys = PurePosixPath(str(read.api_keys_file))
    if keys.parent not in mounts or volumes[mounts[keys.parent]].get("secret") is None:
        yield f"{keys} is in no Secret's volume"
    threads = next((one for one in container["env"] if one["name"] == "PROMPTMUX_THREADS"), {})
    if threads.get("valueFrom", {}).get("resourceFieldRef", {}).get("resource") != "requests.cpu":
        yield "as many lanes as the node has cores, whatever the pod was given"


def probes(objects: Sequence[Object]) -> Iterator[str]:
    """Each probe asks for what its end needs."""
    (container,) = server(objects)["spec"]["containers"]
    wanted = {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    for name, path in wanted.items():
        asked = container.get(name, {}).get("httpGet", {})
        if asked.get("path") != path or asked.get("port") != "http":
            yield f"{name} asks for {asked}"
    ready = container["readinessProbe"]
    if ready["periodSeconds"] * ready["failureThreshold"] >= settings(objects).leave_delay:
        yield "it has left before readiness says so"


def names(objects: Sequence[Object]) -> Iterator[str]:
    """Whatever is named is there."""
    there = {(one["kind"], one["metadata"]["name"]): set(one.get("data", {})) for one in objects}
    for one in objects:
        if one["kind"] != "Namespace" and one["metadata"].get("namespace") != "promptmux":
            yield f"{one['kind']} {one['metadata']['name']} is in another namespace"
    there |= MADE_BY_HAND | {one: set() for one in _OF_THE_FLEET}
    for workload, template in pod_templates(objects):
        claims = {one["metadata"]["name"] for one in workload["spec"].get("volumeClaimTemplates", ())}
        volumes = {one["name"] for one in template["spec"].get("volumes", ())} | claims
        wanted = [*from_outside(template), ("ServiceAccount", template["spec"]["serviceAccountName"], set())]
        for container in containers(template):
            mounted = {one["name"] for one in container["volumeMounts"]}
            yield from (f"{container['name']}: no volume {one}" for one in mounted - volumes)
            probed = [
                container[one]
                for one in ("startupProbe", "livenessProbe", "readinessProbe")
                if one in container
            ]
            ports = {one["name"] for one in container.get("ports", ())}
            for probe in probed:
                port = (probe.get("httpGet") or probe.get("tcpSocket") or {}).get("port")
                if port is not None and port not in ports:
                    yield f"{container['name']}: a probe asks port {port}"
        for kind, name, keys in wanted:
            if (kind, name) not in there:
                yield f"no {kind} {name}"
            elif keys - there[kind, name]:
                yield f"{kind} {name} has no {keys - there[kind, name]}"
    for one in of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject"):
        target = one["spec"]["scaleTargetRef"]
        if (target["kind"], target["name"]) not in there:
            yield f"{one['kind']}: no {target['kind']} {target['name']}"


def from_outside(template: Object) -> Iterator[tuple[str, str, set[str]]]:
    """Whatever a pod takes from ConfigMaps, Secrets and claims: kind, name, keys."""
    yield from _from_volumes(template)
    for container in containers(template):
        yield from _from_environment(container)


def _from_volumes(template: Object) -> Iterator[tuple[str, str, set[str]]]:
    files = {
        one["name"]: one["subPath"]
        for container in containers(template)
        for one in container["volumeMounts"]
        if "subPath" in one
    }
    for volume in template["spec"].get("volumes", ()):
        wanted = {files[volume["name"]]} if volume["name"] in files else set()
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"], wanted
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"], wanted
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], set()


def _from_environment(container: Object) -> Iterator[tuple[str, str, set[str]]]:
    for source in container.get("envFrom", ()):
        yield "ConfigMap", source["configMapRef"]["name"], set()
    for one in container.get("env", ()):
        chosen = one.get("valueFrom", {})
        if "secretKeyRef" in chosen:
            yield "Secret", chosen["secretKeyRef"]["name"], {chosen["secretKeyRef"]["key"]}
        if chosen.get("resourceFieldRef", {}).get("containerName", container["name"]) != container["name"]:
            yield "container", chosen["resourceFieldRef"]["containerName"], set()


def selectors(objects: Sequence[Object]) -> Iterator[str]:
    """Every selector takes the pods it is for, and every port that is named is theirs."""
    pods = [(template["metadata"]["labels"], template) for _, template in pod_templates(objects)]
    for workload, template in pod_templates(objects):
        own = template["metadata"]["labels"]
        if "selector" in workload["spec"] and not selects(workload["spec"]["selector"], own):
            yield f"{workload['kind']} {workload['metadata']['name']} does not select its own pods"
        for spread in template["spec"].get("topologySpreadConstraints", ()):
            if not selects(spread["labelSelector"], own):
                yield "pods are spread from others than themselves"
    for one in of_kind(objects, "Service"):
        chosen = [pod for labels, pod in pods if selects({"matchLabels": one["spec"]["selector"]}, labels)]
        if len(chosen) != 1:
            yield f"Service {one['metadata']['name']} selects {len(chosen)} workloads"
            continue
        ports = {
            port["name"]: port["containerPort"]
            for container in containers(chosen[0])
            for port in container.get("ports", ())
        }
        for port in one["spec"]["ports"]:
            if ports.get(port["targetPort"]) != port["port"]:
                yield f"Service {one['metadata']['name']}: port {port['port']} leads to {port['targetPort']} of {ports}"
    for one in of_kind(objects, "PodDisruptionBudget"):
        if not any(selects(one["spec"]["selector"], labels) for labels, _ in pods):
            yield "the disruption budget is nobody's"
    for one in of_kind(objects, "NetworkPolicy"):
        if one["spec"]["podSelector"] and not any(
            selects(one["spec"]["podSelector"], labels) for labels, _ in pods
        ):
            yield f"NetworkPolicy {one['metadata']['name']} is nobody's"


def commands(objects: Sequence[Object]) -> Iterator[str]:
    """What is started exists, with these names."""
    known = set(getattr(get_command(build()), "commands", {}))
    for _, template in pod_templates(objects):
        for container in containers(template):
            command = container["command"]
            if command[0] == "promptmux" and command[1] not in known:
                yield f"no command promptmux {command[1]}"
            mounts = {one["mountPath"] for one in container["volumeMounts"]}
            for path in command[1:]:
                if path.startswith("/") and path not in mounts:
                    yield f"{container['name']}: {path} is nowhere"
            given = {one["name"]: one.get("value") for one in container.get("env", ())}
            written = [given[name] for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME") if name in given]
            for path in written:
                if not any(PurePosixPath(one) in (PurePosixPath(str(path)), *PurePosixPath(str(path)).parents)
                           for one in mounts):  # fmt: skip
                    yield f"{container['name']}: {path} cannot be written"


def trainers(objects: Sequence[Object], fleet: Sequence[Object]) -> Iterator[str]:
    """A training finds the fleet's admin port, by variables that the command line knows."""
    for _, template in pod_templates(objects):
        for container in template["spec"]["containers"]:
            ours = {
                one["name"]: one.get("value")
                for one in container["env"]
                if one["name"].startswith("PROMPTMUX_")
            }
            if set(ours) != _CLI_VARIABLES:
                yield f"variables {sorted(ours)}, the command line knows {sorted(_CLI_VARIABLES)}"
            host, _, port = str(ours.get("PROMPTMUX_ADMIN_URL")).removeprefix("http://").partition(":")
            service = named(fleet, "Service", "promptmux-admin")
            if host != service["metadata"]["name"] or int(port) != service["spec"]["ports"][0]["port"]:
                yield f"{host}:{port} is not the admin Service"


def metric_names() -> set[str]:
    """Every name that /metrics may show."""
    registry = CollectorRegistry()
    Metrics(registry)
    return {
        f"{family.name}{suffix}"
        for family in registry.collect()
        for suffix in (
            {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        )
    }


def metrics(objects: Sequence[Object]) -> Iterator[str]:
    """What is scaled by is measured, where it is asked for."""
    known = metric_names()
    for one in of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject"):
        found = set(re.findall(r"promptmux_\w+", str(one["spec"])))
        yield from (f"{one['kind']}: no metric {name}" for name in found - known)
        if not found:
            yield f"{one['kind']} looks at no metric of ours"
        for space in re.findall(r'namespace="([^"]*)"', str(one["spec"])):
            if space != one["metadata"].get("namespace"):
                yield f"{one['kind']} asks for namespace {space}"


def scraped(objects: Sequence[Object]) -> Iterator[str]:
    """Whoever scrapes finds the admin port of every server, once."""
    for one in of_kind(objects, "ServiceMonitor"):
        for endpoint in one["spec"]["endpoints"]:
            found = [
                service["metadata"]["name"]
                for service in of_kind(objects, "Service")
                if selects(one["spec"]["selector"], service["metadata"].get("labels", {}))
                and any(port["name"] == endpoint["port"] for port in service["spec"]["ports"])
            ]
            if found != ["promptmux-admin"]:
                yield f"port {endpoint['port']} is scraped from {found}"
            secret = endpoint.get("authorization", {}).get("credentials", {})
            if secret != {"name": METRICS_KEY[1], "key": "key"}:
                yield f"the scraper's key is {secret}"


ALL = (settings_and_sizes, probes, names, selectors, commands, metrics, scraped)
