"""Placement of tokens in a row: special tokens, soft tokens, template words, cuts, pooled places."""

from __future__ import annotations

import shutil

import hypothesis.strategies as st
import pytest
import transformers as hf
from hypothesis import given, settings
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from backbone import Backbone, Row, load_backbone
from backbone.tokenizer import TextTokenizer
from prompt_store import IncompatiblePrompt
from tests.backbone.families import FAMILIES, WORDS, checkpoint, run_cache, tiny
from tests.backbone.prompts import manifest


def encode(family: str, template: str, text: str, pair: str | None = None, **changes: object) -> Row:
    bone = tiny(family)
    own = manifest(bone, template=template, **changes)
    return bone.row_encoder(own).encode([text], [pair])[0]


def tokens(bone: Backbone, row: Row) -> list[str]:
    names = hf.AutoTokenizer.from_pretrained(checkpoint(bone.name))
    return [f"<{~i}>" if i < 0 else names.convert_ids_to_tokens(i) for i in row.token_ids]


def test_soft_tokens_stand_before_the_first_special_token() -> None:
    row = encode("bert", "{soft:2} {text}", "the film", position_offset=2)
    assert tokens(tiny("bert"), row) == ["<0>", "<1>", "[CLS]", "the", "film", "[SEP]"]
    assert (row.lead, row.spans, row.num_prompt_tokens) == (2, ((3, 5),), 4)


def test_start_says_where_the_special_tokens_go() -> None:
    row = encode("bert", "{start}{soft:2} {text}", "film", pooling="cls")
    assert tokens(tiny("bert"), row) == ["[CLS]", "<0>", "<1>", "film", "[SEP]"]
    assert (row.lead, row.spans) == (0, ((0, 1),))


def test_soft_tokens_between_words() -> None:
    row = encode("bert", "{soft:1} {text} {soft:2} it was {mask} .", "good", pooling="mask")
    assert tokens(tiny("bert"), row) == [
        "<0>", "[CLS]", "good", "<1>", "<2>", "it", "was", "[MASK]", ".", "[SEP]",
    ]  # fmt: skip
    assert row.spans == ((7, 8),)


def test_the_whole_row_is_every_place_of_it() -> None:
    row = encode("bert", "{soft:2} {text} it {mask}", "film", pooling="row", position_offset=2)
    assert row.spans == ((0, len(row)),)


def test_pairs_take_the_tokenizers_own_layout() -> None:
    row = encode("bert", "{text} {text_pair}", "who", "the film", pooling="mean")
    assert tokens(tiny("bert"), row) == ["[CLS]", "who", "[SEP]", "the", "film", "[SEP]"]
    assert (row.second, row.spans) == (3, ((1, 2), (3, 5)))
    row = encode("roberta", "{text} {text_pair}", "who", "the", pooling="cls")
    assert tokens(tiny("roberta"), row)[-6:-1] != []
    assert [t for t in tokens(tiny("roberta"), row) if t == "</s>"] == ["</s>"] * 3


def test_a_pair_template_without_a_pair_is_a_single_text() -> None:
    row = encode("bert", "{text} {text_pair}", "who")
    assert tokens(tiny("bert"), row) == ["[CLS]", "who", "[SEP]"]


def test_byte_level_pieces_keep_the_space_before_them() -> None:
    row = encode("gpt2", "film : {text} it was {mask}", "good", pooling="mask")
    assert tokens(tiny("gpt2"), row)[-3:] == ["Ġgood", "Ġit", "Ġwas"]
    assert row.spans == ((len(row) - 1, len(row)),)


def test_a_callers_special_token_is_text() -> None:
    row = encode("bert", "{text}", "[MASK] [SEP] film")
    assert not {"[MASK]", "[SEP]"} & set(tokens(tiny("bert"), row)[1:-1])


def _unigram() -> TextTokenizer:
    """As XLM-R and ALBERT have it: special tokens are ordinary pieces of the model."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("<mask>", 0.0)]
    pieces += [(f"▁{word}", -2.0) for word in ("the", "film", "good")]
    pieces += [(char, -5.0) for char in "▁abcdefghijklmnopqrstuvwxyz<>/"]
    core = Tokenizer(models.Unigram(pieces, unk_id=3))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return TextTokenizer(
        hf.PreTrainedTokenizerFast(
            tokenizer_object=core,
            bos_token="<s>",
            eos_token="</s>",
            pad_token="<pad>",
            unk_token="<unk>",
            mask_token="<mask>",
        )
    )


def test_a_callers_special_token_is_text_for_unigram_models_too() -> None:
    tokenizer = _unigram()
    (ids,) = tokenizer.encode(["the </s> <s>film <mask> good<pad>"])
    assert not {0, 1, 2, 4} & set(ids)
    assert tokenizer.encode(["the film"]) == [[5, 6]]
    assert (tokenizer.layout.prefix, tokenizer.layout.pair_middle, tokenizer.mask_id) == ((0,), (2, 2), 4)
    assert tokenizer.encode_one("film", continues=True) == [6]


@pytest.mark.parametrize(("pooling", "place"), [(0, 0), (2, 2), (99, 3), (-1, 3), (-4, 0), (-99, 0)])
def test_a_pooled_place_is_always_one_of_the_row(pooling: int, place: int) -> None:
    row = encode("bert", "{text}", "the film", pooling=pooling)
    assert row.spans == ((place, place + 1),)


def test_cls_needs_a_special_token_and_pairs_an_order() -> None:
    with pytest.raises(IncompatiblePrompt, match="first special token"):
        encode("gpt2", "{text}", "film", pooling="cls")
    with pytest.raises(IncompatiblePrompt, match="after"):
        encode("bert", "{text_pair} {text}", "film", "good")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["", "\x00", "​", "  "])
def test_a_text_without_tokens_still_makes_a_row(family: str, text: str) -> None:
    row = encode(family, "{text}", text)
    assert len(row) >= 1
    assert row.spans


def test_cut_sides_and_what_counts() -> None:
    text = "one two three good bad"
    for cut, kept in (("right", ["one", "two"]), ("left", ["good", "bad"])):
        row = encode("bert", "{soft:3} {text}", text, max_length={"tokens": 7, "cut": cut}, position_offset=3)
        assert tokens(tiny("bert"), row)[4:-1] == kept
        assert row.truncated
        row = encode("bert", "{soft:3} {text}", text, max_length={"tokens": 2, "counts": "text", "cut": cut})
        assert tokens(tiny("bert"), row)[4:-1] == kept
    assert not encode("bert", "{text}", text).truncated


def test_the_longer_of_a_pair_is_cut_first() -> None:
    row = encode(
        "bert", "{text} {text_pair}", "one two three one two three", "good", max_length={"tokens": 7}
    )
    assert tokens(tiny("bert"), row) == ["[CLS]", "one", "two", "three", "[SEP]", "good", "[SEP]"]


@pytest.mark.parametrize("cut", ["right", "left"])
def test_pairs_are_cut_as_transformers_cuts_them(cut: str) -> None:
    bone = tiny("bert")
    theirs = hf.AutoTokenizer.from_pretrained(checkpoint("bert"), truncation_side=cut)
    lengths = [(text, pair) for text in range(1, 8) for pair in range(1, 8)]
    texts, pairs = (
        [" ".join(words[: both[at]]) for both in lengths] for at, words in enumerate((WORDS, WORDS[9:]))
    )
    for tokens in range(5, 13):
        own = manifest(bone, template="{text}{text_pair}", max_length={"tokens": tokens, "cut": cut})
        rows = bone.row_encoder(own).encode(texts, pairs)
        want = theirs(texts, pairs, truncation=True, max_length=tokens)["input_ids"]
        assert [list(row.token_ids) for row in rows] == want


def test_max_tokens_cuts_further_and_counts_real_tokens() -> None:
    bone = tiny("bert")
    encoder = bone.row_encoder(manifest(bone, soft=3))
    row = encoder.encode(["one two three good bad"], max_tokens=4)[0]
    assert row.num_prompt_tokens == 4
    assert row.truncated


@settings(max_examples=200)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    words=st.lists(st.sampled_from(WORDS), max_size=150),
    soft=st.integers(0, 30),
    cut=st.sampled_from(("left", "right")),
)
def test_no_row_is_longer_than_the_model(family: str, words: list[str], soft: int, cut: str) -> None:
    bone = tiny(family)
    own = manifest(bone, soft=soft, max_length={"tokens": 10_000, "cut": cut})
    row = bone.row_encoder(own).encode([" ".join(words)])[0]
    assert len(row) - row.lead + own.position_offset <= bone.max_positions
    assert sum(1 for i in row.token_ids if i < 0) == soft
    assert all(0 <= a < b <= len(row) for a, b in row.spans)


@pytest.mark.parametrize(
    ("template", "changes", "said"),
    [
        ("{soft:96} {text}", {"position_offset": 96}, "none is left"),
        ("{soft:9} {text}", {"max_length": {"tokens": 11}}, "alone take"),
    ],
)
def test_templates_that_leave_no_room(template: str, changes: dict[str, object], said: str) -> None:
    with pytest.raises(IncompatiblePrompt, match=said):
        encode("bert", template, "film", **changes)


def test_a_causal_model_wants_the_mask_last() -> None:
    with pytest.raises(IncompatiblePrompt, match="last part"):
        encode("gpt2", "{mask} {text}", "film", pooling="mask")


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A decoder whose tokenizer puts a token before each text and one behind it, as some for embeddings do."""
    folder = tmp_path_factory.mktemp("ends") / "model"
    shutil.copytree(checkpoint("llama"), folder)
    names = hf.AutoTokenizer.from_pretrained(folder)
    begin, end = names.convert_tokens_to_ids(["<s>", "</s>"])
    names.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", begin), ("</s>", end)]
    )
    names.save_pretrained(folder)
    return load_backbone(str(folder), device="cpu", dtype="float32", cache_dir=run_cache(), kernels="off")


def test_what_predicts_the_next_token_is_the_rows_last(ends: Backbone) -> None:
    """Behind a token that ends the text, another is predicted than the label's word."""
    words = {"type": "verbalizer", "words": (("bad",), ("good",))}
    asked = manifest(ends, template="{text} it was {mask}", pooling="mask", head=words)
    plain = manifest(ends, template="{text} it was")
    (cloze,), (whole,) = (ends.row_encoder(own).encode(["the film"]) for own in (asked, plain))
    assert (*cloze.token_ids, ends.tokenizer.layout.suffix[0]) == whole.token_ids
    assert cloze.spans == ((len(cloze) - 1, len(cloze)),)


@pytest.mark.parametrize("pooling", ["cls", "pooler"])
def test_a_first_token_that_sees_no_text_is_not_pooled(pooling: str, ends: Backbone) -> None:
    with pytest.raises(IncompatiblePrompt, match="looks back only"):
        ends.row_encoder(manifest(ends, pooling=pooling))
    ends.row_encoder(manifest(ends, template="{text} {start}", pooling="cls"))
