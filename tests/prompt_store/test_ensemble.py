"""Prompts joined into one file, and what is refused of files that say they are such."""

import json
from typing import Any

import numpy as np
import pytest

from prompt_store import (
    Calibration,
    Golden,
    IncompatiblePrompt,
    InvalidPrompt,
    LinearHead,
    LinearLayer,
    Member,
    Prompt,
    VerbalizerHead,
    decode_prompt,
    encode_prompt,
    join_prompts,
    split_members,
    version_of,
)

HIDDEN = "ECHO_ECHO"


def file(build: Any, seed: int, **fields: Any) -> bytes:
    manifest = build.manifest(training={"seed": seed, "data": "the same"}, **fields)
    return encode_prompt(manifest, build.tensors(seed))


def join(*files: bytes) -> Prompt:
    return decode_prompt(join_prompts([(f"file {at}", data) for at, data in enumerate(files)]))


def test_each_member_is_the_prompt_that_it_was(build: Any) -> None:
    files = [
        file(build, seed, calibration=calibration)
        for seed, calibration in ((3, None), (1, Calibration(temperature=2.0)), (2, None))
    ]
    joint = join(*files)
    assert joint.num_virtual_tokens == 9
    assert joint.manifest.calibration is None
    assert joint.manifest.training == {"data": "the same"}
    assert [member.version for member in joint.manifest.members] == [version_of(data) for data in files]
    assert [member.training for member in joint.manifest.members] == [{"seed": seed} for seed in (3, 1, 2)]
    for data, (manifest, tensors) in zip(files, split_members(joint.manifest, joint.tensors), strict=True):
        alone = decode_prompt(data)
        assert Prompt(alone.manifest, tensors) == alone
        assert manifest.model_copy(update={"training": {}}) == alone.manifest.model_copy(
            update={"training": {}}
        )


def test_a_prompt_without_members_is_its_own(build: Any) -> None:
    alone = decode_prompt(build.prompt())
    assert split_members(alone.manifest, alone.tensors) == ((alone.manifest, alone.tensors),)


def test_an_ensemble_gives_its_members(build: Any) -> None:
    files = [file(build, seed) for seed in range(3)]
    two = join_prompts([("a", files[0]), ("b", files[1])])
    assert join_prompts([("two", two), ("c", files[2])]) == join_prompts(list(zip("abc", files, strict=True)))


def test_golden_examples_are_those_of_every_file(build: Any) -> None:
    a, b, c = (Golden(text=text, label="positive") for text in "abc")
    assert join(file(build, 0, golden=(a, b, c)), file(build, 1, golden=(c, a))).manifest.golden == (a, c)


def test_scores_stay_with_their_members_be_they_equal(build: Any) -> None:
    """Of the ensemble nobody has measured one."""
    record = {"dev": {"accuracy": 0.9}, "epochs": 3}
    joint = join(
        *(encode_prompt(build.manifest(training=record), build.tensors(seed)) for seed in range(2))
    ).manifest
    assert joint.training == {"epochs": 3}
    assert [member.training for member in joint.members] == [{"dev": {"accuracy": 0.9}}] * 2


def test_methods_that_differ_are_mixed(build: Any) -> None:
    assert join(file(build, 0), file(build, 1)).manifest.method == "prompt-tuning"
    assert join(file(build, 0), file(build, 1, method="p-tuning")).manifest.method == "mixed"


OTHER: dict[str, tuple[dict[str, Any], str]] = {
    "task": ({"task_id": "other"}, "task_id"),
    "labels": ({"labels": ("positive", "negative")}, "labels"),
    "template": ({"template": "{soft:3} {text}"}, "template"),
    "pooling and offset": ({"pooling": "mean", "position_offset": 0}, "pooling, position_offset"),
    "head": (
        {"head": LinearHead(layers=(LinearLayer(in_features=8, out_features=2, activation="tanh"),))},
        "head",
    ),
}


@pytest.mark.parametrize(("fields", "named"), OTHER.values(), ids=OTHER)
def test_what_cannot_answer_together_is_refused_by_name(
    build: Any, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(IncompatiblePrompt) as caught:
        join(file(build, 0), file(build, 1), file(build, 2, **fields))
    assert str(caught.value).startswith(f"file 2 cannot join file 0: they differ in {named}, which")


def test_only_the_name_of_the_backbone_may_differ(build: Any) -> None:
    named = build.backbone.model_copy(update={"name": "another name"})
    join(file(build, 0), file(build, 1, backbone=named))
    other = build.backbone.model_copy(update={"fingerprint": "cd" * 32})
    with pytest.raises(IncompatiblePrompt, match="they differ in backbone,"):
        join(file(build, 0), file(build, 1, backbone=other))


def test_prefixes_of_two_lengths_are_refused(build: Any) -> None:
    files = []
    for length in (2, 3):
        prefix = {
            f"prefix.encoder.{part}": np.ones((2, length, 2, 4), np.float32) for part in ("key", "value")
        }
        files.append(encode_prompt(build.manifest(), build.tensors() | prefix))
    with pytest.raises(IncompatiblePrompt, match="differ in the tensors' names or shapes"):
        join(*files)


@pytest.mark.parametrize("seeds", [(), (0,), tuple(range(17))])
def test_too_few_or_too_many(build: Any, seeds: tuple[int, ...]) -> None:
    with pytest.raises(InvalidPrompt, match=f"2 to 16 members, got {len(seeds)}"):
        join(*(file(build, seed) for seed in seeds))


def test_one_prompt_twice_or_no_prompt_is_refused_by_name(build: Any) -> None:
    with pytest.raises(InvalidPrompt, match="file 2: the same prompt as in file 0"):
        join(file(build, 0), file(build, 1), file(build, 0))
    with pytest.raises(InvalidPrompt, match="file 1: file: expected safetensors"):
        join(file(build, 0), b"no prompt")


def changed(data: bytes, **changes: str) -> bytes:
    """The file with tensors renamed; both names are of one length, so that nothing else moves."""
    for old, new in changes.items():
        before, after = (name.replace("_", ".", 2).encode() for name in (old, new))
        assert len(before) == len(after)
        assert data.count(before) == 1
        data = data.replace(before, after)
    return data


@pytest.mark.parametrize(
    "changes",
    [
        {"member_1_soft_prompt": "member_2_soft_prompt"},
        {"member_1_soft_prompt": "Member_1_soft_prompt"},
        {"member_1_soft_prompt": "member_1_soft_prompx"},
        {"member_1_soft_prompt": "soft_prompt__________"[:11] + "_" * 9},
        {"member_0_soft_prompt": "member_a_soft_prompt"},
        {"member_0_soft_prompt": "member_-_soft_prompt"},
    ],
)
def test_a_member_has_every_tensor_under_its_own_name(build: Any, changes: dict[str, str]) -> None:
    good = build.ensemble()
    decode_prompt(good)
    with pytest.raises(InvalidPrompt, match=r"tensors: expected member\.[01]\.soft_prompt, got none"):
        decode_prompt(changed(good, **changes))


def test_tensors_and_manifest_agree_on_the_members(build: Any) -> None:
    two = decode_prompt(build.ensemble(2))
    three = decode_prompt(build.ensemble(3))
    one = decode_prompt(build.prompt())
    for manifest, tensors in (
        (two.manifest, three.tensors),
        (three.manifest, two.tensors),
        (one.manifest, two.tensors),
        (two.manifest, one.tensors),
        (two.manifest, {**two.tensors, HIDDEN: np.zeros(1, np.float32)}),
        (two.manifest, {**two.tensors, "member.0.0.soft_prompt": np.zeros(1, np.float32)}),
    ):
        with pytest.raises(InvalidPrompt, match="tensors: expected") as caught:
            encode_prompt(manifest, tensors)
        assert HIDDEN not in str(caught.value)


def test_one_member_of_another_shape_or_value_is_refused(build: Any) -> None:
    joint = decode_prompt(build.ensemble())
    for value in (
        np.zeros((4, 6), np.float32),
        np.zeros(18, np.float32),
        np.full((3, 6), np.nan, np.float32),
    ):
        with pytest.raises(InvalidPrompt, match=r"tensor member.1.soft_prompt: expected"):
            encode_prompt(joint.manifest, {**joint.tensors, "member.1.soft_prompt": value})


def test_half_a_prefix_in_one_member_and_two_lengths_are_refused(build: Any) -> None:
    joint = decode_prompt(build.ensemble())
    whole = {
        f"member.{at}.prefix.encoder.{part}": np.ones((2, 2, 2, 4), np.float32)
        for at in (0, 1)
        for part in ("key", "value")
    }
    encode_prompt(joint.manifest, {**joint.tensors, **whole})
    for missing in whole:
        rest = {name: tensor for name, tensor in whole.items() if name != missing}
        with pytest.raises(InvalidPrompt, match=f"tensors: expected {missing}, got none"):
            encode_prompt(joint.manifest, {**joint.tensors, **rest})
    longer = {name: np.ones((2, 3, 2, 4), np.float32) for name in whole if name.startswith("member.1")}
    with pytest.raises(InvalidPrompt, match="prefix tensors: expected one length"):
        encode_prompt(joint.manifest, {**joint.tensors, **whole, **longer})


def test_members_without_tensors_would_all_be_the_same(build: Any) -> None:
    bare = build.manifest(
        template="{text}{mask}", head=VerbalizerHead(words=(("a",), ("b",))), members=(Member(), Member())
    )
    with pytest.raises(InvalidPrompt, match="members: expected tensors in which they differ"):
        encode_prompt(bare, {})


@pytest.mark.parametrize(
    "members", [3, "3", None, {}, [{}], [{}, {"weight": 2}], [{}, {"version": "../x"}], [[]]]
)
def test_members_are_a_list_of_what_is_known(build: Any, members: Any) -> None:
    good = build.ensemble()
    size = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + size])
    manifest = json.loads(header["__metadata__"]["promptmux"]) | {"members": members}
    header["__metadata__"]["promptmux"] = json.dumps(manifest)
    raw = json.dumps(header).encode()
    with pytest.raises(InvalidPrompt, match="manifest: members"):
        decode_prompt(len(raw).to_bytes(8, "little") + raw + good[8 + size :])
