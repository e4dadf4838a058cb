"""A template's words and white space become the tokens that they are when the whole row is tokenised at once."""

from __future__ import annotations

import pytest

from backbone import Backbone
from prompt_store import Manifest
from tests.backbone.families import tiny
from tests.backbone.prompts import manifest
from tests.backbone.seq2seq import reading
from tests.backbone.seq2seq import tiny as two_stacks

TEXTS = ("the film was good", "who ?", "a")
WHOLE = (
    "{text}", "it was {text}", "it was: {text}", "it was:{text}", "{text}. was it", "{text}? was it", "{text}\nwas it",
    "the film:\n{text}\nwas it", "the film:\n\n{text}", "{text}  was it", "the  film {text}", "{text}\twas it",
    "({text})", "\"{text}\" was it", "the film\n {text} \nwas it", "{{{text}}}",
)  # fmt: skip


def whole(bone: Backbone, template: str, text: str) -> list[int]:
    """The row as the tokenizer makes it of one text."""
    layout = bone.tokenizer.layout
    (ids,) = bone.tokenizer.encode([template.format(text=text)])
    return [*layout.prefix, *ids, *layout.suffix]


def row(bone: Backbone, own: Manifest, text: str) -> list[int]:
    """The row without virtual tokens."""
    return [i for i in bone.row_encoder(own).encode([text])[0].token_ids if i >= 0]


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "roberta"])
@pytest.mark.parametrize("template", WHOLE)
def test_a_row_has_the_tokens_of_the_whole_text(template: str, family: str) -> None:
    bone = tiny(family)
    own = manifest(bone, template="{soft:2} " + template, pooling="mean")
    for text in TEXTS:
        assert row(bone, own, text) == whole(bone, template, text)


@pytest.mark.parametrize("template", [t for t in WHOLE if t != "{{{text}}}"])  # its vocabulary has no braces
def test_where_words_begin_with_a_mark_none_is_put_inside_one(template: str) -> None:
    bone = two_stacks("t5")
    assert bone.tokenizer.marks_words
    own = reading(bone, "start", soft=2, template="{soft:2} " + template + " {mask}", pooling="mask")
    for text in TEXTS:
        assert row(bone, own, text) == whole(bone, template, text)


def test_what_ends_a_row_before_a_prediction_is_kept_but_for_its_space() -> None:
    bone = tiny("gpt2")
    ends = {"{text} {mask}": "{text}", "{text}\n{mask}": "{text}\n", "{text} \n{mask}": "{text} \n"}
    ends |= {"{text}  {mask}": "{text} ", "{text} was:  {mask}": "{text} was: "}
    for template, text in ends.items():
        own = manifest(bone, template=template, pooling="mask")
        assert row(bone, own, TEXTS[0]) == whole(bone, text, TEXTS[0]), template


def test_white_space_that_only_separates_is_no_token() -> None:
    bone = tiny("gpt2")
    bare = manifest(bone, template="{soft:2}{text}", pooling="mean")
    for template in ("{soft:2}\n{text}", "{soft:2} {text}\n", "{soft:2}{text}  "):
        own = manifest(bone, template=template, pooling="mean")
        assert row(bone, own, TEXTS[0]) == row(bone, bare, TEXTS[0]), template
