"""PEFT's side of the race: a prompt learned by PEFT with the stock model of transformers.

    peft              as its users begin: the stock classifier in float32, dropout, PEFT's own start
    peft bf16         the same with weights in bfloat16 under autocast
    peft at its best  as peft bf16, and all of our recipe that it can take: the mean of the text's states, our linear
                      probe as head with our learning rate for it, gradients clipped, no dropout, a start from words
                      (soft prompt) or one that does nothing (prefix)

So what the first two lose by the recipe is told apart from what all lose by the computation. Dynamic padding, AdamW,
warm-up and decay are the same on all sides. Knows nothing of ours but batches, schedule and the probe that it is given.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BertModel, BertPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from backbone.loader import locate
from loadtest.training.data import BATCH, TOKENS, Curve, Plan, configuration
from trainer.data import TaskData, load_examples
from trainer.schedule import Schedule, batches
from trainer.scores import one_hot


@dataclass(frozen=True)
class Side:
    """One way to use PEFT."""

    name: str
    shown: str
    bfloat16: bool = False
    best: bool = False


SIDES = (
    Side("peft", "float32"),
    Side("peft bf16", "bfloat16", bfloat16=True),
    Side("peft at its best", "at its best", bfloat16=True, best=True),
)
# The largest norm of a gradient, and the head's learning rate, where PEFT is given our recipe.
CLIP_NORM, HEAD_LR = 1.0, 2e-3


@dataclass(frozen=True)
class Probe:
    """A linear head fitted on frozen features, and the seconds that took."""

    tensors: Mapping[str, Tensor]
    seconds: float


class MeanPooled(BertPreTrainedModel):  # type: ignore[misc]
    """A classifier that reads the mean of the text's last states, as sentence encoders are trained for."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.classifier = torch.nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        **ignored: object,
    ) -> SequenceClassifierOutput:
        """Logits; virtual tokens, at the embeddings or as keys and values, are in the mask and not in the mean."""
        assert attention_mask is not None, "PEFT makes one for its virtual tokens"
        given = {"attention_mask": attention_mask, "past_key_values": past_key_values, "use_cache": False}
        states = self.bert(input_ids=input_ids, inputs_embeds=inputs_embeds, **given)[0]
        mask = attention_mask[:, TOKENS:].to(states.dtype)[..., None]
        states = states[:, states.shape[1] - mask.shape[1] :]
        return SequenceClassifierOutput(logits=self.classifier((states * mask).sum(1) / mask.sum(1)))


def peft(plan: Plan, kind: str, side: Side, *, lr: float, probe: Probe) -> Curve:
    """PEFT's curve: `kind` is PREFIX_TUNING or PROMPT_TUNING."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        config = configuration(
            Path(folder), plan.data, train_lines=plan.train_lines, dev_lines=plan.dev_lines
        )
        data = load_examples(config)
    torch.manual_seed(plan.seed)
    tokenizer: Any = AutoTokenizer.from_pretrained(str(locate("minilm")))
    model = _model(kind, side, len(data.labels), probe)
    encoded, targets = _encoded(tokenizer, data)
    settings = config.optimiser.model_copy(
        update={"batch_size": BATCH, "epochs": plan.epochs, "evaluations": plan.evaluations}
    )
    schedule = Schedule.of(settings, len(data.train))
    lengths = [len(ids) for ids in encoded["train"]]
    order = [b for epoch in range(plan.epochs) for b in batches(lengths, BATCH, plan.seed, epoch)]
    optimiser, rates = _optimiser(model, side, lr)
    curve: Curve = []
    spent = probe.seconds if side.best else 0.0

    def logits(name: str, batch: Sequence[int]) -> Tensor:
        padded = tokenizer.pad({"input_ids": [encoded[name][at] for at in batch]}, return_tensors="pt")
        context = torch.autocast("cpu", dtype=torch.bfloat16) if side.bfloat16 else contextlib.nullcontext()
        with context:
            return model(**padded).logits.float()  # type: ignore[no-any-return]

    for number in range(schedule.steps):
        begin = time.perf_counter()
        model.train(not side.best)
        value = torch.nn.functional.cross_entropy(
            logits("train", order[number]), targets["train"][order[number]]
        )
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        if side.best:
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], CLIP_NORM)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * schedule.factor(number)
        optimiser.step()
        spent += time.perf_counter() - begin
        if number + 1 in schedule.evaluate_at:
            model.eval()
            curve.append((spent, _accuracy(encoded["dev"], targets["dev"], logits)))
    return curve


def _model(kind: str, side: Side, labels: int, probe: Probe) -> Any:
    import peft as library
    from transformers import AutoModelForSequenceClassification

    place = str(locate("minilm"))
    dtype = torch.bfloat16 if side.bfloat16 else torch.float32
    start: dict[str, object] = {}
    if side.best and kind == "PREFIX_TUNING":
        start = {"init_weights": "zero"}
    elif side.best:
        start = {"prompt_tuning_init": "SAMPLE_VOCAB", "tokenizer_name_or_path": place}
    stock: Any = (MeanPooled if side.best else AutoModelForSequenceClassification).from_pretrained(
        place, num_labels=labels, dtype=dtype
    )
    if side.best:
        with torch.no_grad():
            stock.classifier.weight.copy_(probe.tensors["head.0.weight"])
            stock.classifier.bias.copy_(probe.tensors["head.0.bias"])
    kinds: Any = {"PREFIX_TUNING": library.PrefixTuningConfig, "PROMPT_TUNING": library.PromptTuningConfig}
    model: Any = library.get_peft_model(
        stock, kinds[kind](task_type="SEQ_CLS", num_virtual_tokens=TOKENS, **start)
    )
    for parameter in model.parameters():  # what is trained is float32 on all sides
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def _optimiser(model: Any, side: Side, lr: float) -> tuple[torch.optim.AdamW, list[float]]:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    head = [p for name, p in trained.items() if "classifier" in name]
    rest = [p for name, p in trained.items() if "classifier" not in name]
    rates = [lr, HEAD_LR if side.best else lr]
    groups: list[dict[str, Any]] = [{"params": rest}, {"params": head}]
    return torch.optim.AdamW(groups, lr=lr, weight_decay=0.0), rates


def _encoded(tokenizer: Any, data: TaskData) -> tuple[dict[str, list[list[int]]], dict[str, Tensor]]:
    sets = (("train", data.train), ("dev", data.dev))
    encoded = {
        name: tokenizer([e.text for e in examples], [e.text_pair for e in examples] if data.has_pairs else None,
                        truncation=True, max_length=256)["input_ids"]
        for name, examples in sets
    }  # fmt: skip
    targets = {
        name: torch.from_numpy(one_hot([e.labels for e in examples], data.labels)).argmax(dim=1)
        for name, examples in sets
    }
    return encoded, targets


def _accuracy(dev: Sequence[Sequence[int]], targets: Tensor, logits: Any) -> float:
    order = np.argsort([len(ids) for ids in dev], kind="stable").tolist()
    hits = 0
    with torch.no_grad():
        for at in range(0, len(order), 128):
            some = order[at : at + 128]
            hits += int((logits("dev", some).argmax(dim=1) == targets[some]).sum())
    return hits / len(order)
