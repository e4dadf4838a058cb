"""Whether an object has the form that the API server takes.

Owns: which schemas there are. Kubernetes' own come with kubernetes-validate. For custom resources the strict schemas in
schemas/ are ours, written for the fields that we use: a field that is not in them fails, right or wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.manifests import Object

_OWN = Path(__file__).parent / "schemas"
OLDEST = (
    "1.30"  # backoffLimitPerIndex, matchLabelKeys and unhealthyPodEvictionPolicy are on by default from here
)


def faults(one: Object, version: str) -> Iterator[str]:
    """What is wrong with the object's form for a Kubernetes of that version."""
    validate = pytest.importorskip(
        "kubernetes_validate", reason="NO KUBERNETES-VALIDATE: NOT ONE MANIFEST IS CHECKED AGAINST A SCHEMA"
    )
    jsonschema = pytest.importorskip("jsonschema", reason="NO JSONSCHEMA: CUSTOM RESOURCES ARE NOT CHECKED")
    where = f"{one.get('kind')} {one.get('metadata', {}).get('name')}"
    if "." in str(one.get("apiVersion")).partition("/")[0] and not str(one["apiVersion"]).partition("/")[
        0
    ].endswith(".k8s.io"):
        path = _OWN / f"{str(one['kind']).lower()}.json"
        if not path.exists():
            yield f"{where}: no schema {path.name} for {one['apiVersion']}"
            return
        checker = jsonschema.Draft202012Validator(json.loads(path.read_text()))
        for error in checker.iter_errors(one):
            yield f"{where}: {'/'.join(map(str, error.absolute_path))}: {error.message}"
        return
    try:
        validate.validate(one, version, strict=True)
    except validate.ValidationError as error:
        yield f"{where}: {'/'.join(map(str, error.path))}: {error.message}"
    except (validate.InvalidSchemaError, validate.SchemaNotFoundError) as error:
        yield f"{where}: {error}"


def versions() -> list[str]:
    """The oldest Kubernetes that the manifests are for, and the newest that there are schemas of."""
    validate = pytest.importorskip(
        "kubernetes_validate", reason="NO KUBERNETES-VALIDATE: NOT ONE MANIFEST IS CHECKED AGAINST A SCHEMA"
    )
    return [OLDEST, validate.latest_version()]
