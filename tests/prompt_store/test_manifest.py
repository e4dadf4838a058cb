import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prompt_store import (
    Calibration,
    Golden,
    IncompatiblePrompt,
    InvalidPrompt,
    InvalidTemplate,
    LabelEmbeddingHead,
    LinearHead,
    LinearLayer,
    Member,
    VerbalizerHead,
    parse_manifest,
)

SECRET = "s3cr3t-of-the-caller"

BINARY = LinearHead(layers=(LinearLayer(in_features=8, out_features=2),))
DEEP = LinearHead(
    layers=(
        LinearLayer(in_features=8, out_features=5, activation="tanh"),
        LinearLayer(in_features=5, out_features=2, bias=False),
    )
)
WORDS = VerbalizerHead(words=(("bad", "awful"), ("good",)))
DESCRIPTIONS = LabelEmbeddingHead(descriptions=("it is bad", "it is good"), scale=20.0)

GOOD: dict[str, dict[str, Any]] = {
    "defaults": {},
    "deep head": {"head": DEEP},
    "verbalizer": {"head": WORDS, "template": "{text} It was {mask}.", "pooling": "mask"},
    "label embeddings": {"head": DESCRIPTIONS, "template": "{text}"},
    "one label of many": {
        "multi_label": True,
        "labels": ("spam",),
        "head": LinearHead(layers=(LinearLayer(in_features=8, out_features=1),)),
        "thresholds": (0.25,),
    },
    "calibration": {"calibration": Calibration(temperature=2.0, bias=(0.5, -0.5))},
    "golden": {
        "golden": (Golden(text="a\0b", label="positive"), Golden(text="", text_pair="c", label="negative"))
    },
    "index pooling": {"pooling": -1},
    "training": {
        "training": {"seeds": [1, 2], "score": 0.5, "note": None, "nested": {"z": [True], "a": "é"}}
    },
    "members": {"members": (Member(calibration=Calibration(bias=(0.5, -0.5))), Member(training={"seed": 1}))},
    "any Unicode label": {"labels": ("\0", "🙂\u202e")},
}


@pytest.mark.parametrize("fields", GOOD.values(), ids=GOOD)
def test_a_manifest_is_read_back_from_its_canonical_json(build: Any, fields: dict[str, Any]) -> None:
    manifest = build.manifest(**fields)
    text = manifest.canonical_json().decode()
    assert parse_manifest(text) == manifest
    assert parse_manifest(text).canonical_json().decode() == text
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@given(st.permutations(sorted(json.loads('{"b":1,"a":2,"d":{"y":1,"x":2},"c":[3]}').items())))
def test_the_canonical_json_knows_no_order(build: Any, items: list[tuple[str, Any]]) -> None:
    expected = build.manifest(training={"a": 2, "b": 1, "c": [3], "d": {"x": 2, "y": 1}}).canonical_json()
    assert build.manifest(training=dict(items)).canonical_json() == expected


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "one label": ({"labels": ("a",), "head": BINARY}, "labels: expected at least 2, got 1"),
    "no labels": ({"labels": ()}, "labels"),
    "a label twice": ({"labels": ("a", "a")}, "expected each once"),
    "an empty label": ({"labels": ("a", "")}, "labels.1"),
    "a long label": ({"labels": ("a", "b" * 201)}, "labels.1"),
    "10,001 labels": ({"labels": tuple(map(str, range(10_001)))}, "labels"),
    "a lone surrogate": ({"labels": ("a", "\ud800")}, "labels.1"),
    "labels as a list": ({"labels": ["a", "b"]}, "labels"),
    "thresholds of one label": ({"thresholds": (0.5, 0.5)}, "multi_label is false"),
    "too few thresholds": ({"multi_label": True, "thresholds": (0.5,)}, "thresholds: expected 2, got 1"),
    "a threshold above 1": ({"multi_label": True, "thresholds": (0.5, 1.1)}, "thresholds.1"),
    "too many biases": ({"calibration": Calibration(bias=(0.0,) * 3)}, "calibration.bias: expected 2, got 3"),
    "head too narrow": (
        {"head": LinearHead(layers=(LinearLayer(in_features=8, out_features=3),))},
        "out_features: expected 2, got 3",
    ),
    "head of another width": (
        {"head": LinearHead(layers=(LinearLayer(in_features=7, out_features=2),))},
        r"layers\[0\].in_features: expected 8, got 7",
    ),
    "broken chain": (
        {
            "head": LinearHead(
                layers=(
                    LinearLayer(in_features=8, out_features=5),
                    LinearLayer(in_features=4, out_features=2),
                )
            )
        },
        r"layers\[1\].in_features: expected 5, got 4",
    ),
    "verbalizer without a mask": ({"head": WORDS}, "expected at least 1 in the template, got 0"),
    "verbalizer of three labels": (
        {"head": VerbalizerHead(words=(("a",), ("b",), ("c",))), "template": "{text}{mask}"},
        "head.words: expected 2, got 3",
    ),
    "one description": (
        {"head": LabelEmbeddingHead(descriptions=("a",), scale=1.0)},
        "head.descriptions: expected 2, got 1",
    ),
    "mask pooling without a mask": ({"pooling": "mask"}, "expected a {mask}"),
    "pooling unknown": ({"pooling": "max"}, "pooling"),
    "pooling true": ({"pooling": True}, "pooling"),
    "golden of another label": ({"golden": (Golden(text="a", label="b"),)}, r"golden\[0\].label"),
    "negative offset": ({"position_offset": -1}, "position_offset"),
    "method with a space": ({"method": "p tuning"}, "method"),
    "method with a newline": ({"method": "p-tuning\n"}, "method"),
    "task id with a newline": ({"task_id": "a\n"}, "task_id"),
    "task id upper": ({"task_id": "A"}, "task_id"),
    "NaN in training": ({"training": {"loss": math.nan}}, "training"),
    "infinity deep in training": ({"training": {"a": [{"b": math.inf}]}}, "training"),
    "a surrogate in training": ({"training": {"a": "\udfff"}}, "training"),
    "an object in training": ({"training": {"a": object()}}, "training"),
    "format 0": ({"format": 0}, "format"),
    "format true": ({"format": True}, "format"),
    "one member": ({"members": (Member(),)}, "members: expected none or at least 2, got 1"),
    "17 members": ({"members": (Member(),) * 17}, "members"),
    "a calibration for all members": (
        {"members": (Member(),) * 2, "calibration": Calibration(temperature=2.0)},
        "calibration: expected in the members, each its own, got one for all",
    ),
    "a member's bias of three": (
        {"members": (Member(), Member(calibration=Calibration(bias=(0.0,) * 3)))},
        r"members\[1\].calibration.bias: expected 2, got 3",
    ),
    "unknown field": ({"creation_time": 1}, "creation_time"),
    "template too long": ({"template": "{text}" + "a" * 4096}, "template"),
}


@pytest.mark.parametrize(("fields", "message"), BAD.values(), ids=BAD)
def test_a_manifest_that_contradicts_itself_is_refused(
    build: Any, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        build.manifest(**fields)


@pytest.mark.parametrize("kind", ["tag", "generate"])
def test_a_reserved_kind_says_that_it_is_reserved(build: Any, kind: str) -> None:
    text = build.manifest().canonical_json().decode().replace('"kind":"classify"', f'"kind":"{kind}"')
    with pytest.raises(IncompatiblePrompt, match=f'kind "{kind}" is reserved'):
        parse_manifest(text)


def test_only_an_ensemble_says_that_it_has_members(build: Any) -> None:
    """Files of before there were ensembles keep their digests, and a reader of then refuses an ensemble's file."""
    assert b"members" not in build.manifest().canonical_json()
    assert b'"members":[{"calibration":null' in build.manifest(members=(Member(), Member())).canonical_json()


def test_a_newer_format_says_so(build: Any) -> None:
    text = build.manifest().canonical_json().decode().replace('"format":1', '"format":2')
    with pytest.raises(IncompatiblePrompt, match="format: expected 1"):
        parse_manifest(text)


def test_a_bad_template_is_an_invalid_template(build: Any) -> None:
    with pytest.raises(InvalidTemplate, match="column 1"):
        build.manifest(template="{nothing}")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"kind":"classify"', f'"kind":"{SECRET}"'),
        ('"type":"linear"', f'"type":"{SECRET}"'),
        ('"training":{}', f'"{SECRET}":{{}}'),
        ('"training":{}', f'"training":{{"{SECRET}":NaN}}'),
        ('"training":{}', f'"training":{{"{SECRET}":1,"{SECRET}":2}}'),
        ('"training":{}', f'"training":"{SECRET}"'),
        ('"training":{}', f'"training":{{"a":1e{9**9}}}, "{SECRET}":1'),
        ('"task_id":"sentiment"', f'"task_id":"{SECRET.upper()}"'),
        ('"pooling":"cls"', f'"pooling":"{SECRET}"'),
        ('"labels":["negative"', f'"labels":["{SECRET}","{SECRET}"'),
        ('"template":"{soft:3}{text}"', f'"template":"{{{SECRET}}}"'),
        ('"method":"prompt-tuning"', f'"method":"{SECRET}!"'),
        ('"golden":[]', f'"golden":[{{"text":"","label":"{SECRET}"}}]'),
        ("{", f"{SECRET}"),
    ],
)
def test_no_message_repeats_what_was_sent(build: Any, old: str, new: str) -> None:
    text = build.manifest().canonical_json().decode()
    assert old in text
    with pytest.raises(InvalidPrompt) as caught:
        parse_manifest(text.replace(old, new, 1))
    assert SECRET.lower() not in str(caught.value).lower()


@given(st.text(max_size=50) | st.text('{}[]",:0123456789truefalsenull \\u', max_size=50))
def test_any_text_is_an_invalid_prompt(text: str) -> None:
    with pytest.raises(InvalidPrompt):
        parse_manifest(text)


def test_what_came_later_is_left_out_where_it_is_not_used(build: Any) -> None:
    """Older files keep their bytes, and older servers read new files that do without."""
    plain = build.manifest().canonical_json().decode()
    assert "norm_eps" not in plain
    layers = (
        LinearLayer(in_features=8, out_features=4, norm_eps=1e-5),
        LinearLayer(in_features=4, out_features=2),
    )
    normed = build.manifest(head=LinearHead(layers=layers))
    assert normed.canonical_json().decode().count("norm_eps") == 1
    assert parse_manifest(normed.canonical_json().decode()) == normed
