"""kubectl as it would read a command, and whether what the command names is in our manifests.

Owns: kubectl's verbs and flags, asked of kubectl itself, and the objects of every kustomization that pages apply. Must
not know: pages. What only a cluster has (nodes, events, pods' own names) is taken for granted.
"""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import yaml

from tests.deploy.agreement import MADE_BY_HAND
from tests.deploy.manifests import K8S, OVERLAYS, ROOT, TRAININGS, Object, kubectl, pod_templates, render

_LONG = (
    "Deployment", "StatefulSet", "Job", "CronJob", "Service", "Pod", "Secret", "Namespace", "Node", "ScaledObject",
)  # fmt: skip
KINDS = {kind.lower(): kind for kind in _LONG} | {
    "deploy": "Deployment", "sts": "StatefulSet", "svc": "Service", "po": "Pod", "pods": "Pod", "nodes": "Node",
    "hpa": "HorizontalPodAutoscaler", "pdb": "PodDisruptionBudget", "events": "Event", "prometheus": "Prometheus",
}  # fmt: skip
OF_THE_CLUSTER = {"Pod", "Node", "Event", "Prometheus"}  # made by it or by an operator, never by a file here
STAND_INS = {"POD", "NODE"}  # names that a reader fills in
NAMES_A_POD = {"logs", "exec", "port-forward"}  # a name without a kind is a pod's there
_VERBS = (
    "apply", "apply set-last-applied", "apply view-last-applied", "cp", "create secret generic", "delete", "describe",
    "exec", "get", "kustomize", "label", "logs", "patch", "port-forward", "rollout pause", "rollout restart",
    "rollout resume", "rollout status", "rollout undo", "scale", "taint", "wait",
)  # fmt: skip
FLEET = "../my-fleet/"  # what pages call the reader's copy of deploy/k8s


@dataclass
class Call:
    """A command as kubectl reads it: its verb, flags with their values, other words, and what runs in the pod."""

    verb: str
    words: list[str] = field(default_factory=list)
    flags: dict[str, list[str]] = field(default_factory=dict)
    inside: list[str] = field(default_factory=list)


@functools.cache
def _known_flags(verb: str) -> dict[str, tuple[str, bool]]:
    """Each way to write a flag of a verb: its long name, and whether it takes a value."""
    texts = [
        subprocess.run([kubectl(), *words], capture_output=True, text=True, timeout=600, check=True).stdout
        for words in ([*verb.split(), "--help"], ["options"])
    ]
    found: dict[str, tuple[str, bool]] = {}
    for short, long, default in re.findall(r"^ +(?:(-\w), )?(--[\w-]+)=(.*):$", "\n".join(texts), re.M):
        takes = default not in ("true", "false")
        found |= {form: (long, takes) for form in (short, long) if form}
    return found


def read(words: Sequence[str]) -> Call:
    """A command without its first word; ValueError for a verb or a flag that there is not."""
    before = list(words)
    inside: list[str] = []
    if "--" in before:
        at = before.index("--")
        before, inside = before[:at], before[at + 1 :]
    plain = " ".join(_read_as("get", before, lax=True).words)
    verb = max((one for one in _VERBS if f"{plain} ".startswith(f"{one} ")), key=len, default="")
    if not verb:
        raise ValueError(f"no test knows this verb of kubectl: {plain}")
    call = _read_as(verb, before)
    call.words = call.words[len(verb.split()) :]
    call.inside = inside
    return call


def _read_as(verb: str, words: Sequence[str], *, lax: bool = False) -> Call:
    call, known, rest = Call(verb), _known_flags(verb), list(words)
    while rest:
        word = rest.pop(0)
        if word == "-" or not word.startswith("-"):
            call.words.append(word)
            continue
        name, given, value = word.partition("=")
        if name not in known and not lax:
            raise ValueError(f"kubectl {verb} has no flag {name}")
        long, takes = known.get(name, (name, False))
        if takes and not given:
            if not rest:
                raise ValueError(f"kubectl {verb} {name} wants a value")
            value = rest.pop(0)
        call.flags.setdefault(long, []).append(value)
    return call


@functools.cache
def objects() -> tuple[Object, ...]:
    """Every object that any page has a reader apply."""
    folders = [*(K8S / name for name in (*OVERLAYS, *TRAININGS)), ROOT / "loadtest"]
    rendered = [one for folder in folders for one in render(folder)]
    # A component cannot be rendered by itself; these are what some add.
    added = [
        one
        for file in sorted((K8S / "components").glob("*/*.yaml"))
        for one in yaml.safe_load_all(file.read_text(encoding="utf-8"))
        if isinstance(one, dict) and {"kind", "metadata"} <= one.keys()
    ]
    return (*rendered, *added)


@functools.cache
def _files() -> str:
    """Every manifest as text, those of components included."""
    return "\n".join(file.read_text(encoding="utf-8") for file in sorted(K8S.rglob("*.yaml")))


def complaints(words: Sequence[str]) -> Iterator[str]:
    """What such a command names and there is not."""
    try:
        call = read(words)
    except ValueError as error:
        yield str(error)
        return
    (space,) = call.flags.get("--namespace", [""])
    for folder in call.flags.get("--kustomize", []):
        yield from _folder(folder)
    for pair in ",".join(call.flags.get("--selector", [])).split(","):
        if pair and not any(pair in _labels(template) for _, template in pod_templates(objects())):
            yield f"no pod has the label {pair}"
    if call.verb in ("get", "describe", "delete", "patch", "scale", "wait") or call.verb.startswith(
        ("rollout", "apply ")
    ):
        yield from _named(_references(call.words), space)
    elif call.verb in NAMES_A_POD:
        yield from _named(_references(call.words[:1], default="Pod"), space)
        yield from _ports(call, space)
    elif call.verb == "create secret generic":
        if not any(("Secret", name) in _wanted_secrets() for name in call.words):
            yield f"nothing reads a Secret {call.words}"
    elif call.verb == "taint":
        yield from _named([(KINDS.get(call.words[0], call.words[0]), call.words[1])], space)
    elif call.verb == "label":
        yield from (
            f"no manifest asks for {pair}" for pair in call.words[2:] if _as_yaml(pair) not in _files()
        )


def _folder(folder: str) -> Iterator[str]:
    rendered = {*OVERLAYS, *TRAININGS}
    if folder.startswith(FLEET):
        folder = folder.removeprefix(FLEET)
    elif folder == "loadtest":
        return
    if folder not in rendered:
        yield f"no test renders {folder}"


def _labels(template: Object) -> set[str]:
    return {f"{name}={value}" for name, value in template["metadata"]["labels"].items()}


def _as_yaml(pair: str) -> str:
    name, _, value = pair.partition("=")
    return f'{name}: "{value}"' if value in ("true", "false") else f"{name}: {value}"


def _references(words: Sequence[str], default: str = "") -> list[tuple[str, str]]:
    """Kind and name of what these words name; a kind alone has no name."""
    slashed = [word.split("/", 1) for word in words if "/" in word]
    if slashed:
        return [(KINDS.get(kind, kind), name) for kind, name in slashed]
    if default:
        return [(default, word) for word in words]
    kinds = [(KINDS.get(word, word), "") for word in words[:1] for word in word.split(",")]
    return [(kinds[0][0], name) for name in words[1:]] or kinds


def _named(references: Sequence[tuple[str, str]], space: str) -> Iterator[str]:
    for kind, name in references:
        if kind not in KINDS.values():
            yield f"no test knows the kind {kind}"
        elif not name:
            if kind not in OF_THE_CLUSTER and f"kind: {kind}\n" not in _files():
                yield f"there is no {kind} in any manifest"
        elif name not in STAND_INS and not _is_there(kind, name, space):
            yield f"there is no {kind} {name} in the namespace {space or 'of none'}"


def _is_there(kind: str, name: str, space: str) -> bool:
    if kind == "Pod":  # only those of a StatefulSet have names that are known before
        owner, _, number = name.rpartition("-")
        return any(int(number) < one["spec"]["replicas"] for one in _find("StatefulSet", owner, space))
    if space == "monitoring":  # somebody else's; our manifests name it, too
        return f"{name}.{space}" in _files()
    return bool(_find(kind, name, space))


def _find(kind: str, name: str, space: str) -> list[Object]:
    return [
        one
        for one in objects()
        if (one["kind"], one["metadata"]["name"]) == (kind, name)
        and one["metadata"].get("namespace", "") == space
    ]


def _ports(call: Call, space: str) -> Iterator[str]:
    """The ports of a `port-forward`, as far as their pods are ours."""
    if call.verb != "port-forward" or space == "monitoring":
        return
    workloads = {"Deployment", "StatefulSet"}
    known = {
        port["containerPort"]
        for owner, template in pod_templates(objects())
        for one in template["spec"]["containers"]
        for port in one.get("ports", ())
        if owner["kind"] in workloads
    }
    wanted = {int(word.rpartition(":")[2]) for word in call.words[1:]}
    if not wanted or wanted - known:
        yield f"of the ports {sorted(wanted)} pods have {sorted(known)}"


def _wanted_secrets() -> set[tuple[str, str]]:
    """Secrets that a page has the reader make: those of the fleet, and the load generator's."""
    return {
        *MADE_BY_HAND,
        *(
            ("Secret", entry["valueFrom"]["secretKeyRef"]["name"])
            for _, template in pod_templates(objects())
            for one in template["spec"]["containers"]
            for entry in one.get("env", ())
            if "secretKeyRef" in entry.get("valueFrom", {})
        ),
    }
