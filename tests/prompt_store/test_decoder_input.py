"""What a manifest says of an encoder-decoder; files of all other models stay the bytes that they were."""

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from prompt_store import (
    BackboneRef,
    DecoderInput,
    IncompatiblePrompt,
    InvalidPrompt,
    StackRef,
    check_backbone,
    decode_prompt,
    encode_prompt,
    parse_manifest,
)

# The digest of the builder's manifest before there was a `decoder`.
BEFORE = "4c22cddd63a08efa2a0c5e085b232b6bf621a951671b1fe56c76821ae7416c3b"


@pytest.fixture
def pair(build: Any) -> BackboneRef:
    """A backbone of two stacks, whose decoder has other layers, heads and widths than its encoder."""
    return BackboneRef(
        **build.backbone.model_dump(exclude={"decoder"}), decoder=StackRef(layers=3, kv_heads=4, head_dim=5)
    )


def test_a_manifest_without_a_decoder_is_spelled_as_before(build: Any) -> None:
    assert hashlib.sha256(build.manifest().canonical_json()).hexdigest() == BEFORE


@pytest.mark.parametrize("reads", ["start", "mask", "copy"])
def test_what_the_decoder_reads_is_read_back(build: Any, pair: BackboneRef, reads: str) -> None:
    decoder = DecoderInput(reads=reads, position_offset=4)  # type: ignore[arg-type]
    manifest = build.manifest(backbone=pair, decoder=decoder, pooling="last", template="{soft:3}{text}{mask}")
    text = manifest.canonical_json().decode()
    assert json.loads(text)["decoder"] == {"reads": reads, "position_offset": 4}
    assert parse_manifest(text) == manifest


@pytest.mark.parametrize(
    ("reads", "fields", "message"),
    [
        ("start", {"pooling": "mean"}, 'expected pooling "mask" or "last"'),
        ("mask", {"pooling": 0, "template": "{soft:3}{text}{mask}"}, 'expected pooling "mask" or "last"'),
        ("mask", {"pooling": "last"}, "expected one {mask} in the template, got 0"),
        ("mask", {"pooling": "last", "template": "{soft:3}{text}{mask}{mask}"}, "got 2"),
        ("copy", {"pooling": "pooler"}, "expected a pooling of its states"),
    ],
)
def test_a_decoder_that_contradicts_the_rest_is_refused(
    build: Any, pair: BackboneRef, reads: str, fields: dict[str, Any], message: str
) -> None:
    decoder = DecoderInput(reads=reads)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match=message):
        build.manifest(backbone=pair, decoder=decoder, **fields)


def test_each_stacks_prefix_has_the_shapes_of_its_stack(build: Any, pair: BackboneRef) -> None:
    manifest = build.manifest(backbone=pair, decoder=DecoderInput(reads="copy"))
    sizes = {"encoder": (2, 6, 2, 4), "decoder": (3, 6, 4, 5), "cross": (3, 6, 4, 5)}
    prefixes = {
        f"prefix.{stack}.{part}": np.ones(size, np.float32)
        for stack, size in sizes.items()
        for part in ("key", "value")
    }
    prompt = decode_prompt(encode_prompt(manifest, build.tensors() | prefixes))
    assert {name: prompt.tensors[name].shape for name in prefixes} == {
        n: p.shape for n, p in prefixes.items()
    }
    for name in prefixes:
        wrong = prefixes | {name: np.ones((2, 6, 4, 5), np.float32)}
        with pytest.raises(InvalidPrompt, match=f"{name}: expected shape"):
            encode_prompt(manifest, build.tensors() | wrong)


def test_a_prompt_for_two_stacks_fits_no_other_backbone(build: Any, pair: BackboneRef) -> None:
    manifest = build.manifest(backbone=pair, decoder=DecoderInput(reads="copy"))
    check_backbone(manifest, pair)
    with pytest.raises(IncompatiblePrompt, match="backbone decoder: the prompt expects"):
        check_backbone(manifest, build.backbone)
    with pytest.raises(IncompatiblePrompt, match="backbone decoder: the prompt expects None"):
        check_backbone(build.manifest(), pair)
    with pytest.raises(IncompatiblePrompt, match="this is no encoder-decoder"):
        check_backbone(build.manifest(decoder=DecoderInput(reads="copy")), build.backbone)
