"""The reading of commands that are not run has teeth: each slip here is found, and what is right passes."""

from __future__ import annotations

import pytest

from tests.deploy.manifests import kubectl as find_kubectl
from tests.docs.known import complaints
from tests.docs.shell import ANSWER, commands

RIGHT = [
    "promptmux doctor --store URL --deep",
    "promptmux serve --backbone path/to/bert --store file://bert-store",
    "promptmux publish prompts/*.safetensors --store URL",
    "curl -s -X DELETE http://127.0.0.1:8001/admin/tasks/TASK?force=1",
    'curl -s http://127.0.0.1:8000/classify -d \'{"task_id": "a", "input": "b"}\'',
    "docker compose -f docker/compose.yaml exec server promptmux doctor",
    "python -m loadtest.sizing measure --write",
    "make test",
]
SLIPS = [
    ("promptmux doktor", "doktor"),
    ("promptmux doctor --storr URL", "--storr"),
    ("promptmux rollback TASK", "version"),
    ("promptmux serve --stor file://x", "serve"),
    ("promptmux serve --port many", "serve"),
    ("promptmux key web --scope everything --file a", "everything"),
    ("curl -s http://127.0.0.1:8000/classifi -d '{}'", "no route POST /classifi"),
    ("curl -s http://127.0.0.1:8000/metrics", "no route GET /metrics"),
    ('curl -s http://127.0.0.1:8001/classify -d \'{"task_id": "a", "input": "b"}\'', "no route"),
    ("curl -s http://127.0.0.1:8000/classify", "no route GET"),
    ("curl -s http://127.0.0.1:8080/readyz", "8080"),
    ('curl -s http://127.0.0.1:8000/classify -d \'{"task": "a", "input": "b"}\'', "does not take"),
    ("docker compose -f docker/compose.yml up", "docker/compose.yml"),
    ("docker compose -f docker/compose.yaml logs servers", "servers"),
    ("docker compose -f docker/compose.yaml exec server promptmux doktor", "doktor"),
    ("python -m loadtest.sizin measure", "loadtest.sizin"),
    ("python -m loadtest.sizing measure --wright", "--wright"),
    ("python scripts/result.py", "scripts/result.py"),
    ("make tests", "tests"),
    ("cp -r deploy/k9s ../my-fleet", "deploy/k9s"),
    ("sh ../my-fleet/secrets/redis-passwort.sh", "redis-passwort.sh"),
    ("wget http://127.0.0.1:8000/readyz", "wget"),
]
RIGHT_OF_KUBECTL = [
    "kubectl -n promptmux logs -f job/promptmux-train",
    "kubectl -n promptmux rollout status statefulset/promptmux-redis deployment/promptmux --timeout=20m",
    "kubectl -n promptmux delete sts promptmux-redis --cascade=orphan",
    "kubectl -n promptmux get pod promptmux-redis-0 -o wide",
    "kubectl -n promptmux port-forward deploy/promptmux 8000 8001",
    "kubectl apply -k ../my-fleet/overlays/gpu",
    "kubectl label namespace anybody promptmux.dev/gateway=true",
    "kubectl -n promptmux patch scaledobject promptmux --type merge --patch '{}'",
]
SLIPS_OF_KUBECTL = [
    ("kubectl -n promptmux log POD", "log POD"),
    ("kubectl -n promptmux logs POD --tale=5", "--tale"),
    ("kubectl -n promptmux logs deploy/promptmuks", "promptmuks"),
    ("kubectl -n prompt logs deploy/promptmux", "namespace prompt"),
    ("kubectl logs deploy/promptmux", "of none"),
    ("kubectl -n promptmux logs -l app.kubernetes.io/component=servers", "servers"),
    ("kubectl -n promptmux rollout status sts/promptmux", "StatefulSet promptmux"),
    ("kubectl -n promptmux get pod promptmux-redis-1", "promptmux-redis-1"),
    ("kubectl -n promptmux get pods,hpas", "hpas"),
    ("kubectl -n promptmux delete job promptmux-training", "promptmux-training"),
    ("kubectl -n promptmux port-forward deploy/promptmux 8002", "8002"),
    ("kubectl -n promptmux port-forward pod/POD", "ports"),
    ("kubectl -n monitoring port-forward svc/prometheus 9090", "prometheus"),
    ("kubectl apply -k ../my-fleet/overlays/cpus", "cpus"),
    ("kubectl -n promptmux create secret generic trainer-key", "trainer-key"),
    ("kubectl label namespace anybody promptmux.dev/gate=true", "gate"),
    ("kubectl -n promptmux exec POD -- promptmux doktor", "doktor"),
    ('kubectl -n promptmux exec POD -- sh -c "promptmux tasks --stor URL"', "--stor"),
    ("kubectl -n promptmux patch hpa prompt --patch '{}'", "HorizontalPodAutoscaler prompt"),
    ("kubectl apply -k", "wants a value"),
]


def _said(command: str) -> list[str]:
    return [one for words in commands(command) for one in complaints(words)]


@pytest.mark.parametrize("command", RIGHT)
def test_what_is_right_passes(command: str) -> None:
    assert _said(command) == []


@pytest.mark.parametrize(("command", "word"), SLIPS)
def test_a_slip_is_found(command: str, word: str) -> None:
    assert any(word in one for one in _said(command)), _said(command)


@pytest.mark.parametrize("command", RIGHT_OF_KUBECTL)
def test_what_is_right_for_kubectl_passes(command: str) -> None:
    find_kubectl()
    assert _said(command) == []


@pytest.mark.parametrize(("command", "word"), SLIPS_OF_KUBECTL)
def test_a_slip_in_kubectl_is_found(command: str, word: str) -> None:
    find_kubectl()
    assert any(word in one for one in _said(command)), _said(command)


def test_a_name_alone_is_no_command() -> None:
    assert list(complaints(["promptmux", "rollback"], bare=True)) == []
    assert list(complaints(["promptmux", "rolback"], bare=True))
    assert list(complaints(["promptmux", "rollback", "TASK"], bare=True))


def test_a_block_is_read_as_a_shell_would() -> None:
    block = """
# a comment
A=1 one --flag "two words" | grep 'a|b' >file 2>&1 && two \\
  continued   # why
until three ""; do sleep 1; done
printf %s "$(four --five)" > told
curl -d '{"a":
  "b"}' http://x &
docker build - <<'END'
FROM nothing
END
"""
    assert commands(block) == [
        ["four", "--five"],
        ["one", "--flag", "two words"],
        ["grep", "a|b"],
        ["two", "continued"],
        ["three", ""],
        ["sleep", "1"],
        ["printf", "%s", ANSWER],
        ["curl", "-d", '{"a":\n  "b"}', "http://x"],
        ["docker", "build", "-"],
    ]
    with pytest.raises(ValueError, match="no end"):
        commands("echo 'open")
