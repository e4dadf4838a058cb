"""The backbone: one frozen stock model and the one forward that trainer and server share.

Owns the model, its device and dtype, and the way of a batch: rows and prompts in, logits out. Knows nothing of HTTP,
of stores, or of how prompts are learned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone import attention, family
from backbone.encoder_decoder import STACKS, decoder_start, packed_model
from backbone.ensemble import expand, join_logits, join_scores, together
from backbone.errors import UnsupportedBackbone
from backbone.folding import fold, keep_folded, pays
from backbone.heads import probabilities, score_rows, split_lm_head
from backbone.label_words import label_word_id
from backbone.native import NativeAttention
from backbone.pooling import pool, split_pooler
from backbone.prompts import DevicePrompt, bind, refuse_misfit
from backbone.rows import Row, RowEncoder, text_row
from backbone.tokenizer import TextTokenizer
from backbone.workers import Workers, is_wide, use_one_core
from prompt_store import Manifest, Prompt, check_backbone, check_finite_in, parse_template, split_members

T = TypeVar("T")
DtypeName = Literal["float32", "bfloat16", "float16", "float64"]
_DTYPE_NAMES: dict[torch.dtype, DtypeName] = {
    torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float64: "float64",
}  # fmt: skip


class Backbone:
    """A frozen transformer that scores rows of many prompts in one forward.

    Made by `load_backbone`. `forward` is a pure function of its arguments. `score` shares rows among cores by itself:
    call it from one thread at a time; `score_on_lane` leaves that to its callers.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        fingerprint: str,
        device: torch.device,
        has_pooler: bool = True,
        native: NativeAttention | None = None,
    ) -> None:
        """`model` is a stock transformers model with its checkpoint's language-model head, if that has one;
        `has_pooler` says whether the checkpoint has the weights of the model's pooler; `native` attends on CPUs.
        """
        attention.register()
        self.name, self.fingerprint, self.device = name, fingerprint, device
        model.eval().requires_grad_(False)
        config = model.config
        family.refuse_unfit(model)
        # Models that attend in their own way run padded (`backbone.padded`), and have no place for keys and values.
        self.takes_prefixes = family.attends_by_interface(model)
        if self.takes_prefixes:
            model.set_attn_implementation(attention.NAME)
        self._base: Any = model.base_model
        self._lm_head = split_lm_head(model, self._base)
        self._pooler = split_pooler(self._base, trained=has_pooler)
        self._embedding: nn.Embedding = model.get_input_embeddings()
        self.dtype: torch.dtype = self._embedding.weight.dtype
        self.tokenizer = TextTokenizer(tokenizer)
        self.is_causal = family.is_causal(self._base)
        cores = torch.get_num_threads()
        self._workers = Workers(cores) if device.type == "cpu" and cores > 1 else None
        self.shape = family.shape_of(model, name, fingerprint)
        self.prefix_stack: Literal["encoder", "decoder"] = "decoder" if self.is_causal else "encoder"
        self._folds = self.is_causal and not family.has_window(config) and pays(self.shape)
        self._start = decoder_start(config)
        second = self.tokenizer.layout.second_segment
        self._encoder = packed_model(self._base, self.shape, second, device=device, native=native)
        self.max_positions: int = family.most_positions(config) - self._encoder.position_base
        # A row of a prompt that asks for it: more where positions are relative alone.
        self.longest_row: int = family.longest_row(config, self.max_positions)

    @property
    def dtype_name(self) -> DtypeName:
        """The serving dtype as the store's checks name it."""
        return _DTYPE_NAMES[self.dtype]

    @property
    def kernels(self) -> tuple[str, ...]:
        """What is not left to the stock model where no gradient is asked for: of "attention", "linear", "graph"."""
        return self._encoder.replaced

    def record(self, samples: Sequence[tuple[Sequence[Row], Sequence[DevicePrompt]]]) -> None:
        """Record the stock model as a graph that needs no Python between its operators (`backbone.graph`).

        It is recorded on the first of these batches and compared with the model on all of them. From then on it is
        used where no gradient is asked for. Raises NotRecordable, and nothing has changed.
        """
        self._encoder.record(samples)

    @property
    def has_lm_head(self) -> bool:
        """Whether there is a language-model head that scores as the stock model's, which verbalizers need."""
        return self._lm_head is not None

    def do_without_lm_head(self) -> None:
        """Refuse verbalizers from here on: the head is not one that scores as the stock model's (`selfcheck`)."""
        self._lm_head = None

    @property
    def has_pooler(self) -> bool:
        """Whether the checkpoint came with a pooler, which `pooling = "pooler"` needs."""
        return self._pooler is not None

    @property
    def cloze_reading(self) -> Literal["mask", "copy"] | None:
        """What an encoder-decoder's decoder reads to fill a mask, as it was pretrained; None of all others."""
        return None if self._start is None else self._start.cloze

    def prefix_stacks(self, *, decoder: bool) -> tuple[str, ...]:
        """For which stacks a prompt may have a prefix, whose manifest has a `decoder` or not; the first reads rows."""
        return STACKS if decoder else (self.prefix_stack,)

    def row_encoder(self, manifest: Manifest) -> RowEncoder:
        """Return the encoder that turns texts into rows for this prompt.

        Raises:
            IncompatiblePrompt: the template does not fit this backbone (no room for text, no mask token).

        """
        places, causal = self.longest_row, self.is_causal
        return RowEncoder(
            manifest, self.tokenizer, max_positions=places, is_causal=causal, decoder=self._start
        )

    def load_prompt(self, prompt: Prompt) -> DevicePrompt:
        """Check a prompt against this backbone, cast it once and copy it to the device.

        Raises:
            IncompatiblePrompt: other fingerprint or shapes, or parts this backbone has no place for.
            InvalidPrompt: values that are not finite in the serving dtype.

        """
        check_backbone(prompt.manifest, self.shape)
        check_finite_in(prompt, self.dtype_name)
        self.row_encoder(prompt.manifest)
        # A copy, not a view: a prompt in a slot must not keep its file's bytes alive.
        tensors = {name: torch.tensor(array) for name, array in prompt.tensors.items()}
        lead = parse_template(prompt.manifest.template).num_leading_soft if self._folds else 0
        with torch.no_grad():
            members = [self._bind(*own) for own in split_members(prompt.manifest, tensors)]
            return together([keep_folded(m, lead, self._encoder.key_values) if lead else m for m in members])

    def bind(self, manifest: Manifest, tensors: Mapping[str, Tensor]) -> DevicePrompt:
        """Build a `DevicePrompt` from tensors named as in the file, keeping the autograd graph.

        Raises:
            IncompatiblePrompt: a part of the prompt has no place in this backbone.

        """
        return together([self._bind(*own) for own in split_members(manifest, tensors)])

    def _bind(self, manifest: Manifest, tensors: Mapping[str, Tensor]) -> DevicePrompt:
        refuse_misfit(manifest, self.has_lm_head, self.has_pooler, self._start is not None, name=self.name)
        if not self.takes_prefixes:
            family.refuse_prefixes(tensors, self.name, self._base.config.model_type)
        return bind(
            manifest,
            tensors,
            prefix_stacks=self.prefix_stacks(decoder=manifest.decoder is not None),
            dtype=self.dtype,
            device=self.device,
            word_id=lambda word: label_word_id(self.tokenizer, word, manifest.template, self.name),
        )

    def forward(self, rows: Sequence[Row], prompts: Sequence[DevicePrompt]) -> list[Tensor]:
        """Score rows[i] under prompts[i]: logits [labels_i], float32, calibrated.

        All rows share one forward through the stock model, packed in one line. Differentiable with respect to the
        prompts' tensors. An ensemble's are the logits of the mean of its members' probabilities.
        """
        if not rows:
            return []
        return join_logits(self._logits(*expand(rows, prompts)), prompts)

    def _logits(self, rows: Sequence[Row], prompts: Sequence[DevicePrompt]) -> list[Tensor]:
        pooled = self.features(rows, prompts)
        logits = score_rows(pooled, [p.head for p in prompts], lm_head=self._lm_head, dtype=self.dtype)
        return [prompt.calibrated(value) for value, prompt in zip(logits, prompts, strict=True)]

    def features(self, rows: Sequence[Row], prompts: Sequence[DevicePrompt]) -> Tensor:
        """Pooled hidden states [rows, hidden], float32: what a head sees. For training heads on frozen features."""
        hidden, packed = self._encoder(rows, prompts)
        return pool(hidden, packed, [prompt.pooler for prompt in prompts], self._pooler)

    def score(self, rows: Sequence[Row], prompts: Sequence[DevicePrompt]) -> list[tuple[float, ...]]:
        """Probabilities of each row's labels: softmax, or sigmoid of each label for multi-label prompts.

        A row whose scores are not finite gets NaNs; its neighbours are not touched. On a CPU with several cores the
        rows are shared among them (`backbone.workers`).
        """
        if not rows:
            return []
        each, owners = fold(*expand(rows, prompts))
        scored = self.share(lambda own: self._score([each[r] for r in own], [owners[r] for r in own]), each)
        results: list[tuple[float, ...]] = [()] * len(each)
        for own, values in scored:
            for row, value in zip(own, values, strict=True):
                results[row] = value
        return join_scores(results, prompts)

    @property
    def lanes(self) -> int:
        """How many threads may call `score_on_lane` at a time, each of them on a core of its own."""
        return 1 if self._workers is None else self._workers.count

    def score_on_lane(
        self, rows: Sequence[Row], prompts: Sequence[DevicePrompt], *, alone: bool = False
    ) -> list[tuple[float, ...]]:
        """As `score`, on the core of the calling thread; `alone` says that no other thread is at work.

        Several batches at a time, each on one core, get more done than one on all of them: no core waits for another.
        """
        if not rows:
            return []
        each, owners = fold(*expand(rows, prompts))
        if self._workers is not None:
            # One row is wide or not, however many members of an ensemble read it: all of them have its length.
            if alone and len(rows) == 1 and is_wide([len(each[0])]):
                return join_scores(self._workers.wide(lambda: self._score(each, owners)), prompts)
            use_one_core()
        return join_scores(self._score(each, owners), prompts)

    def share(self, function: Callable[[list[int]], T], rows: Sequence[Row]) -> list[tuple[list[int], T]]:
        """Divide rows among the CPU's cores: `function` gets the numbers of some rows, once on each core.

        Returns each share with what `function` gave for it; on a GPU there is one share. The division depends on
        the rows' lengths alone.
        """
        if self._workers is None:
            return [(list(range(len(rows))), function(list(range(len(rows)))))]
        return self._workers.map(function, [len(row) for row in rows])

    @torch.inference_mode()
    def _score(self, rows: Sequence[Row], prompts: Sequence[DevicePrompt]) -> list[tuple[float, ...]]:
        logits = self._logits(rows, prompts)
        flat = torch.cat(logits).cpu().numpy().astype(np.float64)  # the batch's one synchronisation
        results, begin = [], 0
        for prompt in prompts:
            own = flat[begin : begin + prompt.num_labels]
            begin += prompt.num_labels
            results.append(probabilities(own, multi_label=prompt.multi_label))
        return results

    @torch.inference_mode()
    def encode_labels(self, descriptions: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Unit vectors [n, hidden] of label descriptions: the mean over their tokens, as `mean` pooling sees texts."""
        manifest = family.bare_manifest(self.shape, max_tokens=self.max_positions)
        rows = self.row_encoder(manifest).encode(descriptions)
        vectors = F.normalize(self.features(rows, [self._bare(self.max_positions)] * len(rows)), dim=-1)
        return np.asarray(vectors.cpu().numpy(), dtype=np.float32)

    def token_embedding(self, ids: Sequence[int]) -> Tensor:
        """Input embeddings [n, embedding_width] of vocabulary ids, float32: what soft prompts start from."""
        return torch.as_tensor(self._embedding(torch.tensor(list(ids), device=self.device))).float()

    @torch.no_grad()
    def key_values(self, token_ids: Sequence[int], stack: str | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values of a text of these tokens in every layer: each [layers, tokens, kv_heads, head_dim].

        float32, on the host. Keys are as attention sees them, after any rotation by position: as a prefix stores them.
        `stack` is one of `prefix_stacks`; None: the one that reads rows. More tokens than the model has places for are
        several texts, one after another: a prefix takes no places and may be longer.
        """
        stack, most = stack or self.prefix_stack, self.longest_row
        texts = [token_ids[begin : begin + most] for begin in range(0, len(token_ids), most)]
        pairs = [self._encoder.key_values(text_row(text), self._bare(len(text)), stack) for text in texts]
        keys, values = (torch.cat(part, dim=1).float().cpu() for part in zip(*pairs, strict=True))
        return keys, values

    def weights(self, *, lm_head: bool = False) -> list[nn.Parameter]:
        """The frozen model's own weights, without its heads: for the comparison with full fine-tuning.

        With `lm_head`, those of its language-model head as well, each once: the head often shares the embedding.

        Training them changes every prompt's model, so do that with a backbone of one's own, loaded with kernels="off":
        packed layers would go on with the old weights. The embedding's gradient is sparse from here on: a batch names
        few of the words.
        """
        if "linear" in self.kernels:
            raise UnsupportedBackbone(
                f'{self.name} has packed weights: load it with kernels="off" to train them'
            )
        self._embedding.sparse = True
        head = self._lm_head.parameters if lm_head and self._lm_head is not None else ()
        return list({id(weight): weight for weight in (*self._base.parameters(), *head)}.values())

    def _bare(self, max_tokens: int) -> DevicePrompt:
        labels = torch.zeros(2, self.shape.hidden_size)
        return self.bind(
            family.bare_manifest(self.shape, max_tokens=max_tokens), {"verbalizer.label_embeddings": labels}
        )
