import hashlib
import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from prompt_store import (
    IncompatiblePrompt,
    InvalidPrompt,
    LabelEmbeddingHead,
    LinearHead,
    LinearLayer,
    Member,
    Prompt,
    VerbalizerHead,
    check_backbone,
    check_finite_in,
    decode_prompt,
    encode_prompt,
    version_of,
)

Tensors = dict[str, np.ndarray[Any, Any]]


def arrays(shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    return st.sampled_from([16, 32]).flatmap(
        lambda width: npst.arrays(
            f"<f{width // 8}", shape, elements=st.floats(-60_000, 60_000, width=width), fill=st.just(0.0)
        )
    )


@st.composite
def prompts(draw: st.DrawFn, build: Any) -> tuple[Any, Tensors]:
    """Any kind of prompt that the format has: every head, soft or not, any of the prefixes, with members or none."""
    soft = draw(st.integers(0, 3))
    head = draw(st.sampled_from(["linear", "deep", "verbalizer", "label_embeddings"]))
    count = draw(st.integers(2, 4))
    tensors: Tensors = {}
    fields: dict[str, Any] = {
        "labels": tuple(
            draw(st.lists(st.text(min_size=1, max_size=9), min_size=count, max_size=count, unique=True))
        ),
        "template": f"{{soft:{soft}}}" * bool(soft)
        + "{text}{mask}"
        + draw(st.sampled_from(["", "{text_pair}"])),
        "training": draw(
            st.dictionaries(st.text(max_size=5), st.integers(0, 9) | st.text(max_size=5), max_size=3)
        ),
    }
    shapes: dict[str, tuple[int, ...]] = {"soft_prompt": (soft, 6)} if soft else {}
    for stack in draw(st.sets(st.sampled_from(["encoder", "decoder", "cross"]))):
        for part in ("key", "value"):
            shapes[f"prefix.{stack}.{part}"] = (2, 2, 2, 4)
    if head == "linear":
        fields["head"] = LinearHead(layers=(LinearLayer(in_features=8, out_features=count, bias=False),))
        shapes["head.0.weight"] = (count, 8)
    elif head == "deep":
        layers = (LinearLayer(in_features=8, out_features=3), LinearLayer(in_features=3, out_features=count))
        fields["head"] = LinearHead(layers=layers)
        for i, layer in enumerate(layers):
            shapes[f"head.{i}.weight"] = (layer.out_features, layer.in_features)
            shapes[f"head.{i}.bias"] = (layer.out_features,)
    elif head == "verbalizer":
        fields["head"] = VerbalizerHead(words=(("a",),) * count)
    else:
        fields["head"] = LabelEmbeddingHead(descriptions=("a",) * count, scale=1.0)
        shapes["verbalizer.label_embeddings"] = (count, 8)
    members = draw(st.sampled_from([0, 0, 2, 3])) if shapes else 0
    fields["members"] = tuple(Member(training={"seed": at}) for at in range(members))
    for lead in [f"member.{at}." for at in range(members)] or [""]:
        tensors |= {lead + name: draw(arrays(shape)) for name, shape in shapes.items()}
    return build.manifest(**fields), tensors


@given(st.data())
def test_what_is_encoded_is_what_is_decoded(build: Any, data: st.DataObject) -> None:
    manifest, tensors = data.draw(prompts(build))
    encoded = encode_prompt(manifest, tensors)
    decoded = decode_prompt(encoded)
    assert decoded == Prompt(manifest, tensors)
    keys = {(name.split("prefix")[0], len(tensor[0])) for name, tensor in tensors.items() if "prefix" in name}
    softs = sum(len(tensor) for name, tensor in tensors.items() if name.endswith("soft_prompt"))
    assert decoded.num_virtual_tokens == softs + sum(length for _, length in keys)
    # The same input in another order gives the same bytes.
    assert encode_prompt(manifest, dict(reversed(tensors.items()))) == encoded
    assert version_of(encoded) == hashlib.sha256(encoded).hexdigest()


@given(st.data())
def test_the_safetensors_library_reads_and_writes_the_same(build: Any, data: st.DataObject) -> None:
    manifest, tensors = data.draw(prompts(build))
    read = safetensors.numpy.load(encode_prompt(manifest, tensors))
    assert Prompt(manifest, read) == Prompt(manifest, tensors)
    written = safetensors.numpy.save(tensors, metadata={"promptmux": manifest.canonical_json().decode()})
    assert decode_prompt(written) == Prompt(manifest, tensors)


@given(st.data())
def test_one_changed_byte_or_a_cut_gives_an_invalid_prompt_or_an_honest_one(
    build: Any, data: st.DataObject
) -> None:
    """Whatever byte is hit: nothing but InvalidPrompt comes out, or a prompt that its own bytes spell."""
    original = data.draw(st.sampled_from([build.prompt(), build.ensemble()]))
    header_end = 8 + int.from_bytes(original[:8], "little")
    at = data.draw(st.integers(0, header_end - 1) | st.integers(0, len(original) - 1))
    mutated = data.draw(
        st.one_of(
            st.integers(0, 255).map(lambda byte: original[:at] + bytes([byte]) + original[at + 1 :]),
            st.just(original[:at]),
            st.binary(min_size=1, max_size=9).map(lambda more: original[:at] + more + original[at:]),
            st.integers(1, 99).map(lambda count: original[:at] + original[at + count :]),
        )
    )
    try:
        prompt = decode_prompt(mutated)
    except InvalidPrompt:
        return
    assert decode_prompt(encode_prompt(prompt.manifest, prompt.tensors)) == prompt
    if len(mutated) != len(original) or mutated[header_end:] == original[header_end:]:
        return
    assert prompt.manifest == decode_prompt(original).manifest  # the header is whole, so only values moved


def test_every_cut_is_refused(build: Any) -> None:
    original = build.prompt()
    for end in range(len(original)):
        with pytest.raises(InvalidPrompt):
            decode_prompt(original[:end])


@pytest.mark.parametrize("kind", ["prompt", "ensemble"])
def test_every_byte_of_the_header_set_to_anything_is_no_other_error(build: Any, kind: str) -> None:
    original = getattr(build, kind)()
    header_end = 8 + int.from_bytes(original[:8], "little")
    refused = 0
    for at in range(header_end):
        for byte in (0, original[at] ^ 1, original[at] ^ 32, 0x22, 0x7B, 0xFF):
            try:
                decode_prompt(original[:at] + bytes([byte]) + original[at + 1 :])
            except InvalidPrompt:
                refused += 1
    assert refused > 3 * header_end


def test_tensors_are_read_only_aligned_views_of_the_file(build: Any) -> None:
    data = build.prompt()
    for tensor in decode_prompt(data).tensors.values():
        assert tensor.flags.aligned
        assert not tensor.flags.writeable
        assert np.shares_memory(tensor, np.frombuffer(data, np.uint8))


def test_misaligned_tensors_of_a_foreign_writer_are_read(build: Any) -> None:
    manifest, tensors = build.manifest(), build.tensors()
    names = ["head.0.weight", "soft_prompt", "head.0.bias"]
    entries: dict[str, Any] = {"__metadata__": {"promptmux": manifest.canonical_json().decode()}}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        code = {2: "F16", 4: "F32"}[tensors[name].itemsize]
        entries[name] = {"dtype": code, "shape": tensors[name].shape, "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    header += b" " * (1 - len(header) % 2)
    data = len(header).to_bytes(8, "little") + header + b"".join(tensors[name].tobytes() for name in names)
    prompt = decode_prompt(data)
    assert prompt == Prompt(manifest, tensors)
    assert all(tensor.flags.aligned and not tensor.flags.writeable for tensor in prompt.tensors.values())


def test_prompts_are_equal_only_with_equal_tensors(build: Any) -> None:
    one = decode_prompt(build.prompt())
    assert one == decode_prompt(build.prompt())
    assert one != decode_prompt(build.prompt(seed=1))
    assert one != decode_prompt(build.prompt("other"))
    wider = {name: tensor.astype(np.float32) for name, tensor in one.tensors.items()}
    assert one != Prompt(one.manifest, wider)
    assert one != Prompt(one.manifest, {})
    assert one != "a prompt"


@pytest.mark.parametrize(
    "change",
    [
        {"soft_prompt": np.zeros((3, 6))},
        {"soft_prompt": np.zeros((3, 6), np.int32)},
        {"soft_prompt": np.zeros((3, 6), ">f4")},
        {"soft_prompt": np.zeros((2, 6), np.float32)},
        {"soft_prompt": np.full((3, 6), np.nan, np.float32)},
        {"other": np.zeros(1, np.float32)},
    ],
    ids=["float64", "int32", "big-endian", "a row missing", "NaN", "unknown name"],
)
def test_encode_refuses_what_decode_would(build: Any, change: Tensors) -> None:
    with pytest.raises(InvalidPrompt, match=r"expected .* got"):
        encode_prompt(build.manifest(), build.tensors() | change)


@pytest.mark.parametrize(("one", "other"), [("encoder.key", "encoder.value"), ("encoder.key", "cross.value")])
def test_all_prefixes_have_one_length(build: Any, one: str, other: str) -> None:
    prefixes = {
        f"prefix.{stack}.{part}": np.zeros((2, 5, 2, 4), np.float32)
        for stack in {one.split(".")[0], other.split(".")[0]}
        for part in ("key", "value")
    }
    encode_prompt(build.manifest(), build.tensors() | prefixes)
    prefixes[f"prefix.{other}"] = np.zeros((2, 4, 2, 4), np.float32)
    with pytest.raises(InvalidPrompt, match=r"expected one length, got \[4, 5\]"):
        encode_prompt(build.manifest(), build.tensors() | prefixes)


def test_a_prefix_of_no_length_is_refused(build: Any) -> None:
    empty = {f"prefix.encoder.{part}": np.zeros((2, 0, 2, 4), np.float32) for part in ("key", "value")}
    with pytest.raises(InvalidPrompt, match=r"expected shape \[2, 'P', 2, 4\], got \[2, 0, 2, 4\]"):
        encode_prompt(build.manifest(), build.tensors() | empty)


def test_encode_refuses_a_header_above_the_cap(build: Any) -> None:
    with pytest.raises(InvalidPrompt, match="header: expected at most 1048576 bytes, got a claim of"):
        encode_prompt(build.manifest(training={"notes": "a" * 2**20}), build.tensors())


def test_encode_reads_any_memory_layout(build: Any) -> None:
    tensors = build.tensors()
    strided = tensors | {"soft_prompt": np.asfortranarray(tensors["soft_prompt"])}
    assert encode_prompt(build.manifest(), strided) == build.prompt()


@pytest.mark.parametrize(
    ("value", "width", "finite"),
    [
        (65504.0, np.float32, {"float32", "bfloat16", "float16"}),
        (65519.0, np.float32, {"float32", "bfloat16", "float16"}),  # rounds down to the largest float16
        (65520.0, np.float32, {"float32", "bfloat16"}),
        (-65520.0, np.float32, {"float32", "bfloat16"}),
        (65504.0, np.float16, {"float32", "bfloat16", "float16"}),
        (3.3895e38, np.float32, {"float32", "bfloat16"}),
        (np.uint32(0x7F7F7FFF).view(np.float32), np.float32, {"float32", "bfloat16"}),
        (np.uint32(0x7F7F8000).view(np.float32), np.float32, {"float32"}),
        (-np.finfo(np.float32).max, np.float32, {"float32"}),
        (1e-45, np.float32, {"float32", "bfloat16", "float16"}),
    ],
)
def test_a_value_must_stay_finite_in_the_serving_dtype(
    build: Any, value: float, width: Any, finite: set[str]
) -> None:
    tensors = build.tensors() | {"head.0.bias": np.array([0, value], width)}
    prompt = decode_prompt(encode_prompt(build.manifest(), tensors))
    for dtype in ("float32", "bfloat16", "float16"):
        if dtype in finite:
            check_finite_in(prompt, dtype)
        else:
            with pytest.raises(
                InvalidPrompt, match=f"tensor head.0.bias: expected values that are finite in {dtype}"
            ):
                check_finite_in(prompt, dtype)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fingerprint", "cd" * 32),
        ("embedding_width", 7),
        ("hidden_size", 9),
        ("layers", 3),
        ("kv_heads", 1),
        ("head_dim", 5),
    ],
)
def test_another_backbone_is_refused_naming_both(build: Any, field: str, value: Any) -> None:
    manifest = build.manifest()
    check_backbone(manifest, build.backbone)
    check_backbone(manifest, build.backbone.model_copy(update={"name": "another name"}))
    message = (
        f"backbone {field}: the prompt expects {getattr(build.backbone, field)}, this backbone has {value}"
    )
    with pytest.raises(IncompatiblePrompt, match=message):
        check_backbone(manifest, build.backbone.model_copy(update={field: value}))
