"""Who may reach which port, as a network plugin reads the NetworkPolicies.

Owns: the meaning of ingress rules, for pods and namespaces by their labels. Must not know: what should be open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.deploy.manifests import Object, of_kind

Labels = Mapping[str, str]


@dataclass(frozen=True)
class Pod:
    """A pod as policies see it: its labels, and its namespace's."""

    labels: Labels = field(default_factory=dict)
    namespace: str = "promptmux"
    namespace_labels: Labels = field(default_factory=dict)


def selects(selector: Object, labels: Labels) -> bool:
    """Whether a label selector takes these labels."""
    assert set(selector) <= {"matchLabels"}, selector  # nothing else is used here, nor understood
    return all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())


def may_reach(objects: Sequence[Object], source: Pod, target: Labels, port: int) -> bool:
    """Whether `source` may open a connection to `port` of a pod of ours with the labels `target`."""
    policies = [
        one["spec"]
        for one in of_kind(objects, "NetworkPolicy")
        if "Ingress" in one["spec"]["policyTypes"] and selects(one["spec"]["podSelector"], target)
    ]
    if not policies:
        return True  # no policy: everything is open
    return any(_lets_in(rule, source, port) for one in policies for rule in one.get("ingress", ()))


def _lets_in(rule: Object, source: Pod, port: int) -> bool:
    if "ports" in rule and all(one["port"] != port for one in rule["ports"]):
        return False
    return "from" not in rule or any(_is_peer(peer, source) for peer in rule["from"])


def _is_peer(peer: Object, source: Pod) -> bool:
    assert set(peer) <= {"podSelector", "namespaceSelector"}, peer
    labels = {"kubernetes.io/metadata.name": source.namespace, **source.namespace_labels}
    if "namespaceSelector" not in peer:
        if source.namespace != "promptmux":
            return False
    elif not selects(peer["namespaceSelector"], labels):
        return False
    return "podSelector" not in peer or selects(peer["podSelector"], source.labels)
