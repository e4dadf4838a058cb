"""The backbone: one frozen stock model and the one forward that trainer and server share.

Owns the model, its device and dtype, and the way of a batch: rows and prompts in, logits out. Knows nothing of HTTP,
of stores, or of how prompts are learned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone import attention, family
from backbone.encoder import PackedEncoder
from backbone.errors import UnsupportedBackbone
from backbone.folding import fold, has_window, pays, soft_row
from backbone.heads import probabilities, score_rows, split_lm_head
from backbone.native import NativeAttention
from backbone.pooling import pool, split_pooler
from backbone.prompts import DevicePrompt, bind, label_word_id, refuse_misfit
from backbone.rows import Row, RowEncoder, text_row
from backbone.tokenizer import TextTokenizer
from backbone.workers import Workers, is_wide, use_one_core
from prompt_store import (
    BackboneRef,
    Manifest,
    Prompt,
    check_backbone,
    check_finite_in,
    parse_template,
)

T = TypeVar("T")
DtypeName = Literal["float32", "bfloat16", "float16"]
_DTYPE_NAMES: dict[torch.dtype, DtypeName] = {
    torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16",
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
        self.prefix_stack: Literal["encoder", "decoder"] = "decoder" if self.is_causal else "encoder"
        heads = config.num_attention_heads
        self.shape = BackboneRef(
            name=name,
            fingerprint=fingerprint,
            embedding_width=self._embedding.embedding_dim,
            # OPT may project its last states back to the embedding's width: heads see that width.
            hidden_size=getattr(config, "word_embed_proj_dim", None) or config.hidden_size,
            layers=config.num_hidden_layers,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=family.head_dim(config),
        )
        self._folds = self.is_causal and not has_window(config) and pays(self.shape)
        fits = native is not None and native.takes(self.dtype, self.shape.head_dim)
        self._encoder = PackedEncoder(
            self._base,
            self._embedding,
            layers=self.shape.layers,
            second_segment=self.tokenizer.layout.second_segment,
            device=device,
            native=native if fits and device.type == "cpu" else None,
        )
        self.max_positions: int = config.max_position_embeddings - self._encoder.position_base

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
        """Whether the checkpoint came with a language-model head, which verbalizers need."""
        return self._lm_head is not None

    @property
    def has_pooler(self) -> bool:
        """Whether the checkpoint came with a pooler, which `pooling = "pooler"` needs."""
        return self._pooler is not None

    def row_encoder(self, manifest: Manifest) -> RowEncoder:
        """Return the encoder that turns texts into rows for this prompt.

        Raises:
            IncompatiblePrompt: the template does not fit this backbone (no room for text, no mask token).

        """
        return RowEncoder(
            manifest, self.tokenizer, max_positions=self.max_positions, is_causal=self.is_causal
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
        with torch.no_grad():
            loaded = self.bind(prompt.manifest, tensors)
            lead = parse_template(prompt.manifest.template).num_leading_soft
            if not lead or not self._folds:
                return loaded
            folded = loaded.with_prefix(*self._encoder.key_values(soft_row(lead), loaded))
            if lead == loaded.num_soft_tokens:  # no row needs the vectors any more
                folded = replace(folded, soft_prompt=None)
            return replace(loaded, folded=folded, folded_tokens=lead, nbytes=folded.nbytes)

    def bind(self, manifest: Manifest, tensors: Mapping[str, Tensor]) -> DevicePrompt:
        """Build a `DevicePrompt` from tensors named as in the file, keeping the autograd graph.

        Raises:
            IncompatiblePrompt: a part of the prompt has no place in this backbone.

        """
        refuse_misfit(manifest, name=self.name, lm_head=self.has_lm_head, pooler=self.has_pooler)
        return bind(
            manifest,
            tensors,
            prefix_stack=self.prefix_stack,
            dtype=self.dtype,
            device=self.device,
            word_id=lambda word: label_word_id(self.tokenizer, word, manifest.template, self.name),
        )

    def forward(self, rows: Sequence[Row], prompts: Sequence[DevicePrompt]) -> list[Tensor]:
        """Score rows[i] under prompts[i]: logits [labels_i], float32, calibrated.

        All rows share one forward through the stock model, packed in one line. Differentiable with respect to the
        prompts' tensors.
        """
        if not rows:
            return []
        hidden, packed = self._encoder(rows, prompts)
        pooled = pool(hidden, packed, [prompt.pooler for prompt in prompts], self._pooler)
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
        rows, prompts = fold(rows, prompts)
        scored = self.share(lambda own: self._score([rows[r] for r in own], [prompts[r] for r in own]), rows)
        results: list[tuple[float, ...]] = [()] * len(rows)
        for own, values in scored:
            for row, value in zip(own, values, strict=True):
                results[row] = value
        return results

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
        rows, prompts = fold(rows, prompts)
        if self._workers is None:
            return self._score(rows, prompts)
        if alone and is_wide([len(row) for row in rows]):
            return self._workers.wide(lambda: self._score(rows, prompts))
        use_one_core()
        return self._score(rows, prompts)

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
        logits = self.forward(rows, prompts)
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
        return F.embedding(torch.tensor(list(ids), device=self.device), self._embedding.weight).float()

    @torch.no_grad()
    def key_values(self, token_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Keys and values of a text of these tokens in every layer: each [layers, tokens, kv_heads, head_dim].

        float32, on the host. Keys are as attention sees them, after any rotation by position: as a prefix stores them.
        """
        keys, values = self._encoder.key_values(text_row(token_ids), self._bare(len(token_ids)))
        return keys.float().cpu(), values.float().cpu()

    def weights(self) -> list[nn.Parameter]:
        """The frozen model's own weights, without its heads: for the comparison with full fine-tuning.

        Training them changes every prompt's model, so do that with a backbone of one's own, loaded with kernels="off":
        packed layers would go on with the old weights.
        """
        if "linear" in self.kernels:
            raise UnsupportedBackbone(
                f'{self.name} has packed weights: load it with kernels="off" to train them'
            )
        return list(self._base.parameters())

    def _bare(self, max_tokens: int) -> DevicePrompt:
        labels = torch.zeros(2, self.shape.hidden_size)
        return self.bind(
            family.bare_manifest(self.shape, max_tokens=max_tokens), {"verbalizer.label_embeddings": labels}
        )
