"""The manifests as `kubectl kustomize` renders them, and ways to look into them.

Owns: rendering and looking. Must not know: what is right.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "deploy" / "k8s"
OVERLAYS = tuple(sorted(f"overlays/{folder.name}" for folder in (K8S / "overlays").iterdir()))
TRAININGS = ("train/many", "train/nightly", "train/once")
OPTIONAL = ("gateway-only", "hpa", "keda", "monitoring")  # components that no overlay takes by itself

Object = dict[str, Any]


def kubectl() -> str:
    """Where kubectl is; the test is skipped, and says so, where it is missing."""
    found = shutil.which("kubectl")
    if found is None:
        pytest.skip(
            "NO KUBECTL: NOT ONE KUBERNETES MANIFEST IS RENDERED OR CHECKED. Install kubectl to check them"
        )
    return found


def render(folder: Path) -> list[Object]:
    """Every object of one kustomization."""
    done = subprocess.run(
        [kubectl(), "kustomize", str(folder)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # kustomize warns of what it will drop one day
    return [one for one in yaml.safe_load_all(done.stdout) if one is not None]


@functools.cache
def rendered(name: str) -> list[Object]:
    """Every object of a kustomization below deploy/k8s. Shared: to change them, copy them first."""
    return render(K8S / name)


def render_with(tmp_path: Path, overlay: str, components: Sequence[str]) -> list[Object]:
    """An overlay and some of the optional components, added as the guide says: to a copy of the overlay itself.

    In an overlay of their own above it they would come after all that it does, and hide what it undoes.
    """
    own = shutil.copytree(K8S, tmp_path / "fleet") / overlay
    file = own / "kustomization.yaml"
    lines = yaml.safe_load(file.read_text())
    lines["components"] += [f"../../components/{one}" for one in components]
    file.write_text(yaml.safe_dump(lines))
    return render(own)


def of_kind(objects: Sequence[Object], *kinds: str) -> list[Object]:
    """Those of some kinds."""
    return [one for one in objects if one["kind"] in kinds]


def named(objects: Sequence[Object], kind: str, name: str) -> Object:
    """The one of that kind and name; generated names may end with a hash."""
    found = [one for one in of_kind(objects, kind) if one["metadata"]["name"] == name]
    found = found or [
        one
        for one in of_kind(objects, kind)
        if one["metadata"]["name"].rpartition("-")[0] == name
        and len(one["metadata"]["name"]) == len(name) + 11
    ]
    assert len(found) == 1, f"{kind} {name}: {len(found)} of them"
    return found[0]


def pod_templates(objects: Sequence[Object]) -> Iterator[tuple[Object, Object]]:
    """Each workload and its pods' template."""
    for one in of_kind(objects, "Deployment", "StatefulSet", "Job"):
        yield one, one["spec"]["template"]
    for one in of_kind(objects, "CronJob"):
        yield one, one["spec"]["jobTemplate"]["spec"]["template"]


def containers(template: Object) -> list[Object]:
    """All containers of a pod, those that run before included."""
    return [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]


def server(objects: Sequence[Object]) -> Object:
    """The server's pod template."""
    return named(objects, "Deployment", "promptmux")["spec"]["template"]  # type: ignore[no-any-return]


def variables(objects: Sequence[Object]) -> dict[str, str]:
    """What stands in the server's environment as plain text, with its ConfigMap's values."""
    (container,) = server(objects)["spec"]["containers"]
    found: dict[str, str] = {}
    for source in container["envFrom"]:
        name = source["configMapRef"]["name"]
        (config,) = (one for one in of_kind(objects, "ConfigMap") if one["metadata"]["name"] == name)
        found |= config["data"]
    return found | {one["name"]: one["value"] for one in container["env"] if "value" in one}


def quantity(text: str | int) -> float:
    """A Kubernetes quantity as a number."""
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9}
    for unit, factor in units.items():
        if str(text).endswith(unit):
            return float(str(text).removesuffix(unit)) * factor
    return float(text)
