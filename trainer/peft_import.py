"""Owns how an adapter that PEFT wrote becomes a prompt file which gives PEFT's logits, its quirks included.

What PEFT does otherwise than a prompt trained here: a sequence classifier reads place 0 of [virtual tokens; CLS; …],
and text begins at position n behind a prefix too. Knows PEFT's files through `peft_format`, task and base model
through `peft_names`, the prompt's tensors through `peft_tensors`, the classifier's through `peft_heads`, what it
answers through `peft_answers`, and the rows' length through `peft_lengths`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Literal as OneOf

from pydantic import ValidationError
from transformers import AutoConfig, AutoTokenizer

from backbone import Backbone
from backbone.label_words import label_word_id
from prompt_store import (
    DecoderInput,
    Head,
    IncompatiblePrompt,
    LinearHead,
    Manifest,
    MaxLength,
    PromptStoreError,
    VerbalizerHead,
    decode_prompt,
    encode_prompt,
)
from prompt_store.prompt import Array
from trainer.errors import AdapterError
from trainer.manifests import first_reason
from trainer.peft_answers import labels_of, several_labels
from trainer.peft_format import Adapter, read_adapter
from trainer.peft_heads import head_layers, padding_word, pooled_place, stock_head, word_rows
from trainer.peft_lengths import most_places
from trainer.peft_names import base_of, task_of
from trainer.peft_template import check_template, chosen_template
from trainer.peft_tensors import own_tensors, prefix, soft_prompt, task_index


@dataclass(frozen=True)
class Choices:
    """What PEFT's files do not say. `words` are the label words of each label; None: what the adapter's kind implies.

    `max_tokens` is the tokenizer's `max_length` in the program that used PEFT: text and special tokens together,
    `truncation_side` the tokenizer's; None: the base model's tokenizer has it. `multi_label`: None: the base model's
    `problem_type` says it. `aggregate`: how the scores of one label's words become one.
    """

    task_id: str | None = None
    backbone: str | None = None
    labels: Sequence[str] | None = None
    words: Mapping[str, Sequence[str]] | None = None
    template: str | None = None
    task_index: int | None = None
    max_tokens: int | None = None
    truncation_side: OneOf["right", "left"] | None = None
    multi_label: bool | None = None
    aggregate: OneOf["mean", "max"] = "mean"


@dataclass(frozen=True)
class Imported:
    """A prompt file that has been tried on its backbone, and what a person should know about it."""

    data: bytes
    manifest: Manifest
    notes: tuple[str, ...]


def import_peft(folder: Path, choices: Choices | None = None) -> Imported:
    """Read an adapter and make the prompt file that answers as PEFT does with it. Nothing is written.

    Raises:
        AdapterError: the adapter cannot become a prompt, or does not fit its base model; with what to do.
        BackboneError: the base model cannot be loaded.

    """
    choices = choices or Choices()
    adapter = read_adapter(folder)
    task_id = task_of(adapter, choices.task_id)
    base, backbone = base_of(adapter, choices.backbone)
    config = AutoConfig.from_pretrained(base)
    return _Importer(adapter, choices, task_id, base, backbone, config).run()


class _Importer:
    """One import: what the parts have in common, and the notes that they leave."""

    def __init__(
        self, adapter: Adapter, choices: Choices, task_id: str, base: Path, backbone: Backbone, config: Any
    ) -> None:
        self.adapter, self.choices, self.task_id = adapter, choices, task_id
        self.base, self.backbone, self.config = base, backbone, config
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.notes: list[str] = []
        self.two_stacks = backbone.shape.decoder is not None
        self._shifts_decoder = self.two_stacks and adapter.is_prefix

    def run(self) -> Imported:
        adapter, backbone = self.adapter, self.backbone
        self._refuse_other_models()
        task, count = task_index(adapter, self.choices.task_index), adapter.num_virtual_tokens
        if adapter.is_prefix:
            tensors = prefix(adapter, backbone.shape, "decoder" if self.two_stacks else backbone.prefix_stack)
        else:
            tensors = {"soft_prompt": soft_prompt(adapter, backbone.shape, task)}
        labels: tuple[str, ...]
        if adapter.task_type == "SEQ_CLS":
            head, pooling, labels, head_tensors = self._classifier()
            several = several_labels(self.config, len(labels), self.choices.multi_label, self.notes)
            tensors |= head_tensors
            source = chosen_template(self.choices.template, predicts=False)
        else:
            source = chosen_template(self.choices.template, predicts=True)
            head, labels, head_tensors = self._language_model(source)
            pooling, several = "mask", bool(self.choices.multi_label)
            tensors |= head_tensors
        decoder = None
        if self.two_stacks:
            decoder = DecoderInput(reads="start", position_offset=count if self._shifts_decoder else 0)
        self._compare_depth()
        given, limit = self.choices.max_tokens, self.tokenizer.model_max_length
        places = most_places(adapter, backbone, self.config, given, limit, self.notes)
        try:
            manifest = Manifest(
                task_id=self.task_id,
                labels=labels,
                multi_label=several,
                method=adapter.method,
                backbone=backbone.shape,
                template=source if adapter.is_prefix else f"{{soft:{count}}}{source}",
                pooling=pooling,
                # Of two stacks the encoder is shifted by soft prompts alone, and the decoder by a prefix alone.
                position_offset=0 if self._shifts_decoder else count,
                decoder=decoder,
                max_length=MaxLength(tokens=places, counts="row", cut=self._cut()),
                head=head,
                training=adapter.record(task),
            )
        except ValidationError as error:
            raise AdapterError(f"{self._chosen(error)}: {first_reason(error)}") from None
        self._check_room(manifest)
        try:
            data = encode_prompt(manifest, tensors)
            prompt = decode_prompt(data)
            backbone.load_prompt(prompt)
        except PromptStoreError as error:
            raise AdapterError(f"{adapter.folder} does not fit {backbone.name}: {error}") from None
        if self.choices.template is not None:
            self.notes += check_template(source, prompt.manifest, backbone)
        return Imported(data, prompt.manifest, tuple(self.notes))

    def _refuse_other_models(self) -> None:
        wanted, name = self.adapter.task_type, self.backbone.name
        if wanted == "SEQ_CLS" and self.two_stacks:
            raise AdapterError(
                f"PEFT itself cannot run virtual tokens on the sequence classifier of {self.config.model_type}: there "
                "are no answers to keep"
            )
        if (wanted == "SEQ_2_SEQ_LM") != self.two_stacks:
            what = "is no encoder-decoder" if wanted == "SEQ_2_SEQ_LM" else "is an encoder-decoder"
            raise AdapterError(f"the base model does not fit: {name} {what}, and the adapter is for {wanted}")
        if wanted == "CAUSAL_LM" and not self.backbone.is_causal:
            raise AdapterError(
                f"the base model does not fit: {name} is no decoder, and the adapter is for {wanted}"
            )
        submodules = self.adapter.submodules
        if not self.two_stacks and submodules != 1:
            # It takes the rows of both stacks under a mask for one, or spreads a prefix over other layers.
            raise AdapterError(
                f"the adapter's num_transformer_submodules is {submodules}, which is for encoder-decoders, and {name} "
                "is none: PEFT has no sound answers with it, so there are none to keep"
            )
        if self.two_stacks and self.adapter.is_prefix and submodules != 2:
            raise AdapterError(
                f"the adapter's num_transformer_submodules is {submodules}, and only with 2 does PEFT give an "
                "encoder-decoder its prefix apart: otherwise its cross attention also reads what the decoder's own "
                "attention kept, and there are no sound answers to keep"
            )

    def _compare_depth(self) -> None:
        """Note a base model of another depth: PEFT takes it, but the adapter was trained on another."""
        learned, layers = self.adapter.size("num_layers"), self.backbone.shape.layers
        if learned not in (None, layers) and not self.two_stacks:
            self.notes.append(
                f"the adapter was trained on {learned} layers and {self.backbone.name} has {layers}: PEFT takes it "
                "too, but this may be another base model"
            )

    def _classifier(self) -> tuple[Head, Any, tuple[str, ...], dict[str, Array]]:
        causal = self.backbone.is_causal
        stock = stock_head(self.config, is_causal=causal)
        if self.adapter.is_prefix and not stock.takes_prefix:
            raise AdapterError(
                f"PEFT itself cannot run prefix tuning on {self.config.model_type}: there are no answers to keep"
            )
        if self.choices.words is not None:
            raise AdapterError("--words: a SEQ_CLS adapter has a head of its own: leave them out")
        if self.choices.aggregate != "mean":
            raise AdapterError("--aggregate: a SEQ_CLS adapter has no label words: leave it out")
        found = head_layers(stock, self.adapter, self.base, self.config, self.backbone.shape.hidden_size)
        self._refuse_leftovers(found.used)
        labels = labels_of(self.config, found.layers[-1].out_features, self.choices.labels, self.notes)
        return (
            LinearHead(layers=found.layers),
            self._pooled(),
            labels,
            dict(found.tensors),
        )

    def _pooled(self) -> OneOf["last", "row"] | int:
        suffixes = self.backbone.tokenizer.layout.suffix, self.backbone.tokenizer.layout.pair_suffix
        place = pooled_place(
            self.config, suffixes, is_causal=self.backbone.is_causal, is_prefix=self.adapter.is_prefix
        )
        if isinstance(place, int) and place < 0:
            self.notes.append(
                "rows end in the padding token, and PEFT's classifier reads what stands before it"
            )
        if place == "last" and self.adapter.is_prefix and (pad := padding_word(self.config, self.tokenizer)):
            self.notes.append(
                f"PEFT's classifier passes over {pad!r} at a text's end, which is the base model's pad_token_id: the "
                "logits of texts that end in it are others here"
            )
        return place

    def _language_model(self, source: str) -> tuple[Head, tuple[str, ...], dict[str, Array]]:
        """The label words' scores: from the base model's head, or from the one that the adapter has of its own."""
        head, labels = self._verbalizer()
        ids = self._word_ids(head, source)
        own = word_rows(self.adapter, ids, self.config, self.backbone.shape.hidden_size)
        self._refuse_leftovers(own.used if own else frozenset())
        if own is None:
            return head, labels, {}
        if head.aggregate != "mean" and any(len(words) > 1 for words in head.words):
            raise AdapterError(
                "--aggregate max: the adapter has a language-model head of its own, of which the mean alone can be kept"
            )
        return LinearHead(layers=own.layers), labels, dict(own.tensors)

    def _word_ids(self, head: VerbalizerHead, source: str) -> list[list[int]]:
        """The token of each label's words. Raises AdapterError where a word has none of its own."""
        taken: dict[int, str] = {}
        ids: list[list[int]] = []
        for words in head.words:
            ids.append([])
            for word in words:
                try:
                    token = label_word_id(self.backbone.tokenizer, word, source, self.backbone.name)
                except IncompatiblePrompt as error:
                    raise AdapterError(f"--words: {error}") from None
                if token in taken:
                    raise AdapterError(
                        f"--words: {taken[token]!r} and {word!r} are one token for {self.backbone.name}: each label "
                        "word must be its own"
                    )
                taken[token] = word
                ids[-1].append(token)
        return ids

    def _verbalizer(self) -> tuple[VerbalizerHead, tuple[str, ...]]:
        words = self.choices.words
        if not words or not all(own and all(own) for own in words.values()):
            raise AdapterError(
                f"a {self.adapter.task_type} adapter answers with words and has no labels: say which words mean what, "
                "as --words positive=great,good --words negative=bad"
            )
        if not self.backbone.has_lm_head:
            raise AdapterError(
                f"{self.backbone.name} has no language-model head, which {self.adapter.task_type} needs"
            )
        if len(words) < 2 and not self.choices.multi_label:
            raise AdapterError("--words: a classifier has two labels or more: say the words of each")
        labels = tuple(self.choices.labels or words)
        if set(labels) != set(words):
            raise AdapterError(
                "--labels and --words: each label needs its words, and there are no other labels"
            )
        spoken = tuple(tuple(words[label]) for label in labels)
        return VerbalizerHead(words=spoken, aggregate=self.choices.aggregate), labels

    def _chosen(self, error: ValidationError) -> str:
        """What a manifest is refused for: what the caller chose is named before the adapter is."""
        reason = first_reason(error)
        if reason.startswith("labels"):
            own = "" if self.choices.labels else ": the base model's own names cannot be taken, name others"
            return f"--labels{own}"
        if reason.startswith("template") and self.choices.template is not None:
            return "--template"
        return f"{self.adapter.folder} does not fit {self.backbone.name}"

    def _check_room(self, manifest: Manifest) -> None:
        """Raise AdapterError, with what is too long, where rows have no place for a text."""
        try:
            self.backbone.row_encoder(manifest)
        except IncompatiblePrompt as error:
            given = self.choices.max_tokens
            blamed = f"{self.adapter.folder} does not fit {self.backbone.name}"
            if self.choices.template is not None:
                blamed = "--template"
            if given is not None and _fits(self.backbone, manifest):
                blamed = f"--max-length {given} leaves no place for the text"
            raise AdapterError(f"{blamed}: {error}") from None

    def _refuse_leftovers(self, used: frozenset[str]) -> None:
        left = sorted(self.adapter.tensors.keys() - used - own_tensors(self.adapter))
        if left:
            raise AdapterError(
                f"the adapter also holds {', '.join(left[:3])} ({len(left)} tensors in all): these change the model "
                "itself, which all tasks share, so it cannot be served as a prompt"
            )

    def _cut(self) -> OneOf["right", "left"]:
        side = self.choices.truncation_side or self.tokenizer.truncation_side
        if side == "left" and self.choices.truncation_side is None:
            self.notes.append(
                "texts are cut on the left, as the base model's tokenizer does it; --truncation-side"
            )
        return "left" if side == "left" else "right"


def _fits(backbone: Backbone, manifest: Manifest) -> bool:
    """Whether rows have a place for a text where they may be as long as the model's."""
    longest = manifest.max_length.model_copy(update={"tokens": backbone.longest_row})
    try:
        backbone.row_encoder(manifest.model_copy(update={"max_length": longest}))
    except IncompatiblePrompt:
        return False
    return True
