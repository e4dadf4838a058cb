from __future__ import annotations

import numpy as np
import pytest
import torch

from backbone import Backbone
from backbone.family import bare_manifest
from prompt_store import parse_template
from tests.backbone.families import PREFIXED, tiny
from tests.backbone.reference import prefix_in_every_layer, stock
from trainer import TrainConfig
from trainer.head_only import random_head
from trainer.init import Initialiser
from trainer.label_texts import label_texts, starting_texts

TEXTS = ["the film is good", "the book is bad", "this is not great"]


def _initialiser(backbone: Backbone, task_text: str = "good or bad") -> Initialiser:
    rows = backbone.row_encoder(bare_manifest(backbone.shape, max_tokens=32)).encode(TEXTS)
    return Initialiser(backbone, rows, task_text=task_text, label_texts=("great film", "terrible film"))


@pytest.fixture
def initialiser(bert: Backbone) -> Initialiser:
    return _initialiser(bert)


@pytest.mark.parametrize(
    "sources", [("text", "labels", "vocabulary"), ("labels",), ("vocabulary",), ("random",)]
)
def test_soft_prompts_start_at_the_norm_of_words(
    bert: Backbone, initialiser: Initialiser, sources: tuple
) -> None:  # type: ignore[type-arg]
    start = initialiser.soft_prompt(parse_template("{soft:12}{text}"), sources, seed=0)
    words = bert.token_embedding(range(5, bert.tokenizer.vocab_size)).norm(dim=1)
    assert start.shape == (12, bert.shape.embedding_width)
    norms = start.norm(dim=1)
    assert words.min() / 2 < norms.min()
    assert norms.max() < 2 * words.max()


def test_sources_come_in_their_order(bert: Backbone, initialiser: Initialiser) -> None:
    start = initialiser.soft_prompt(
        parse_template("{soft:8}{text}"), ("text", "labels", "vocabulary"), seed=0
    )
    text = bert.token_embedding(bert.tokenizer.encode_one("good or bad"))
    assert torch.equal(start[: len(text)], text)
    label_means = [
        bert.token_embedding(bert.tokenizer.encode_one(label)).mean(dim=0)
        for label in ("great film", "terrible film")
    ]
    got = start[len(text) : len(text) + 2]
    cosines = (
        torch.stack([torch.cosine_similarity(mean[None], got) for mean in label_means]).max(dim=0).values
    )
    assert torch.allclose(cosines, torch.ones(2), atol=1e-5)


def test_labels_start_from_the_words_that_answer_for_them() -> None:
    """Lester et al. 2021, section 3.2; as they stand in a sentence, which byte-level BPE tells apart."""
    backbone = tiny("roberta")
    config = TrainConfig.model_validate(
        {"task_id": "t", "output": "o", "data": {"train": "x"}, "labels": ("no", "yes"),
         "head": {"type": "verbalizer", "words": {"yes": ("good", "great"), "no": ("bad",)}}},
    )  # fmt: skip
    assert starting_texts(config) == ("bad", "good great")
    linear = config.model_copy(update={"head": config.head.model_copy(update={"type": "linear"})})
    assert starting_texts(linear) == label_texts(linear) == ("no", "yes")
    initialiser = Initialiser(backbone, [], task_text="", label_texts=("bad",))
    start = initialiser.soft_prompt(parse_template("{soft:1}{text}"), ("labels",), seed=0)
    (word,) = backbone.tokenizer.encode(["the film is bad"])[0][-1:]
    own = backbone.token_embedding([word])
    assert torch.cosine_similarity(start, own).item() == pytest.approx(1, abs=1e-5)


def test_vocabulary_samples_are_tokens_of_the_training_texts(
    bert: Backbone, initialiser: Initialiser
) -> None:
    start = initialiser.soft_prompt(parse_template("{soft:6}{text}"), ("vocabulary",), seed=0)
    ids = sorted({token for text in TEXTS for token in bert.tokenizer.encode_one(text)})
    known = bert.token_embedding(ids)
    assert (torch.cdist(start, known).min(dim=1).values < 1e-6).all()


def test_words_in_the_template_start_their_own_slot(bert: Backbone, initialiser: Initialiser) -> None:
    template = parse_template('{soft:2}{text}{soft:"a good book"}')
    start = initialiser.soft_prompt(template, ("vocabulary",), seed=0)
    assert torch.equal(start[2:], bert.token_embedding(bert.tokenizer.encode_one("a good book")))


def test_seeds_draw_differently_and_reproducibly(initialiser: Initialiser) -> None:
    template = parse_template("{soft:12}{text}")
    a, again, b = (initialiser.soft_prompt(template, ("vocabulary",), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a, again)
    assert not torch.equal(a, b)


@pytest.mark.parametrize("family", PREFIXED)
def test_recorded_keys_and_values_are_those_of_the_model(family: str) -> None:
    """Real activations: what the stock model's attention reads in each layer for the words of the task's text."""
    backbone = tiny(family)
    ids = backbone.tokenizer.encode_one("good or bad")
    shape = backbone.shape
    empty = torch.empty(shape.layers, 0, shape.kv_heads, shape.head_dim)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    model = stock(family)
    with torch.no_grad(), prefix_in_every_layer(model, empty, empty, seen):
        model(input_ids=torch.tensor([ids]))
    found = _initialiser(backbone).prefix(("text",), len(ids), 0)
    for at, tensor in enumerate(found):
        assert tensor.shape == (shape.layers, len(ids), shape.kv_heads, shape.head_dim)
        torch.testing.assert_close(tensor, torch.stack([layer[at] for layer in seen]), rtol=1e-4, atol=1e-5)


def test_a_causal_prefix_of_real_activations_scores_as_the_text_itself() -> None:
    """On a causal model with rotary positions, text after its own prefix equals text in one row."""
    backbone = tiny("llama")
    manifest = bare_manifest(backbone.shape, max_tokens=32).model_copy(update={"pooling": "last"})
    zeros = torch.zeros(2, backbone.shape.hidden_size)
    whole_row = backbone.row_encoder(manifest).encode(["the film is good"])[0]
    front, rest = whole_row.token_ids[:2], whole_row.token_ids[2:]
    keys, values = backbone.key_values(front)
    bare = backbone.bind(manifest, {"verbalizer.label_embeddings": zeros})
    shifted = manifest.model_copy(update={"position_offset": 2})
    prefixed = backbone.bind(
        shifted,
        {"verbalizer.label_embeddings": zeros, "prefix.decoder.key": keys, "prefix.decoder.value": values},
    )
    from backbone import Row

    rest_row = Row(
        rest, lead=0, second=len(rest), spans=((len(rest) - 1, len(rest)),), num_prompt_tokens=len(rest)
    )
    with torch.no_grad():
        expected = backbone.features([whole_row], [bare])
        got = backbone.features([rest_row], [prefixed])
    assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("sources", [("text", "labels", "vocabulary"), ("random",)])
def test_prefixes_have_their_shape_and_depend_on_the_seed(
    bert: Backbone,
    initialiser: Initialiser,
    sources: tuple,  # type: ignore[type-arg]
) -> None:
    shape = bert.shape
    keys, values = initialiser.prefix(sources, 9, seed=0)
    assert keys.shape == values.shape == (shape.layers, 9, shape.kv_heads, shape.head_dim)
    assert np.array_equal(keys, initialiser.prefix(sources, 9, seed=0)[0])
    assert not np.array_equal(keys, initialiser.prefix(sources, 9, seed=1)[0])
    if sources == ("random",):
        assert 0.01 < float(keys.std()) < 0.03


def test_a_prefix_may_be_longer_than_the_model_has_places_for(
    bert: Backbone, initialiser: Initialiser
) -> None:
    most = bert.longest_row
    tokens = [5 + at % 40 for at in range(most + 7)]
    keys, values = bert.key_values(tokens)
    for got, texts in zip(
        (keys, values),
        zip(bert.key_values(tokens[:most]), bert.key_values(tokens[most:]), strict=True),
        strict=True,
    ):
        assert torch.equal(got, torch.cat(texts, dim=1))
    assert initialiser.prefix(("text", "vocabulary"), most + 7, 0)[0].shape == keys.shape


def test_a_random_prefix_and_a_random_head_of_one_seed_are_unrelated(
    bert: Backbone, initialiser: Initialiser
) -> None:
    keys, values = initialiser.prefix(("random",), 4, 0)
    head = random_head({"head.0.weight": torch.zeros(2, bert.shape.hidden_size)}, 0)[
        "head.0.weight"
    ].flatten()
    for drawn in (keys, values):
        assert not torch.equal(head, drawn.flatten()[: len(head)])


def test_a_task_without_words_starts_from_the_vocabulary(bert: Backbone) -> None:
    initialiser = Initialiser(bert, [], task_text="", label_texts=("",))
    assert initialiser.soft_prompt(parse_template("{soft:3}{text}"), ("text", "labels"), seed=0).shape[0] == 3
