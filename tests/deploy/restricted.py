"""What the Pod Security Standard "restricted" asks of a pod, and what we ask beyond it, field by field.

Owns: these rules. Must not know: which pods there are.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.deploy.manifests import Object, containers

UID = 10001  # the images' user
_VOLUMES = {
    "configMap",
    "secret",
    "emptyDir",
    "persistentVolumeClaim",
    "projected",
    "downwardAPI",
    "ephemeral",
}


def loose_ends(template: Object) -> Iterator[str]:
    """Everything about one pod template that is looser than it should be."""
    spec = template["spec"]
    context = spec.get("securityContext", {})
    for field in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
        if spec.get(field):
            yield f"{field} is set"
    if spec.get("automountServiceAccountToken") is not False:
        yield "the pod has a service account's token"
    if spec.get("enableServiceLinks") is not False:
        yield "Services put variables into the pod"
    if context.get("runAsNonRoot") is not True:
        yield "may run as root"
    if context.get("runAsUser") != UID or context.get("runAsGroup") != UID or context.get("fsGroup") != UID:
        yield f"user, group and volumes' group are not all {UID}"
    if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "no seccomp profile RuntimeDefault"
    if context.get("sysctls") or context.get("supplementalGroups"):
        yield "sysctls or more groups"
    for volume in spec.get("volumes", ()):
        if not set(volume) - {"name"} <= _VOLUMES:
            yield f"volume {volume['name']} is of a kind that is not allowed"
        if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {}):
            yield f"volume {volume['name']} may fill the node's disk"
    for container in containers(template):
        yield from (f"{container['name']}: {what}" for what in _loose_container(container))


def _loose_container(container: Object) -> Iterator[str]:
    context = container.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False:
        yield "privilege escalation"
    if context.get("readOnlyRootFilesystem") is not True:
        yield "the root file system may be written"
    if context.get("capabilities") != {"drop": ["ALL"]}:
        yield "capabilities are kept or added"
    for field in ("privileged", "procMount", "seLinuxOptions", "seccompProfile", "runAsUser", "runAsNonRoot"):
        if field in context:
            yield f"{field} overrides the pod's"
    if any("hostPort" in port for port in container.get("ports", ())):
        yield "a port of the node"
    resources = container.get("resources", {})
    if "memory" not in resources.get("limits", {}) or "cpu" not in resources.get("requests", {}):
        yield "no limit of memory, or no share of the processor"
    if "cpu" in resources.get("limits", {}):
        yield "a limit of the processor, which stops every lane"
    typed = [*container.get("command", ()), *container.get("args", ())]
    for text in (*typed, *(str(one.get("value", "")) for one in container.get("env", ()))):
        if "pmx_" in text or "redis://" in text:
            yield "a key or a store's URL stands where everybody reads it"
