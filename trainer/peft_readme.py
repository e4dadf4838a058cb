"""Owns the page of an exported folder, README.md: lines of Python that load it with PEFT and give the prompt's logits.

The tests run these lines as they stand. Knows how texts are written for PEFT; knows no tensors.
"""

from __future__ import annotations

import json
import shlex
from typing import Any, Final

from backbone import Backbone
from backbone.label_words import label_word_id
from prompt_store import (
    LabelEmbeddingHead,
    LinearHead,
    Manifest,
    MaskSlot,
    PairSlot,
    SoftSlot,
    Template,
    VerbalizerHead,
    parse_template,
)
from trainer.peft_page_rows import encoded, put_between
from trainer.peft_template import Around, around, as_texts, has_words, split_otherwise

HEAD_FILE: Final = "head.safetensors"
_AUTO = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}


def readme(manifest: Manifest, base: Backbone, config: Any, way: str, where: str, reason: str) -> str:
    """The page for a prompt that is exported as `way`, for a base model with `config` that is found at `where`."""
    template = parse_template(manifest.template)
    lines = [
        f"# {manifest.task_id}",
        "",
        f"A prompt of promptmux for {_quoted(where)}, written for PEFT. Its labels, in the order of the logits:",
        "",
        *(f"{at}. {_quoted(label)}" for at, label in enumerate(manifest.labels)),
        "",
    ]
    if manifest.multi_label:
        least = list(manifest.thresholds or (0.5,) * len(manifest.labels))
        lines += [
            f"A text has each label whose logit, through a sigmoid, reaches its threshold: {least}.",
            "",
        ]
    if reason:
        lines += [
            f"It is no stock classifier: {reason}. PEFT runs the virtual tokens, and the lines below read the states.",
            "",
        ]
    lines += [
        f"`logits(text)` gives what promptmux gives (row by row, without padding). {_cut(manifest, template, base)}",
        "",
        "```python",
        *_code(manifest, base, config, way, where),
        "```",
        "",
    ]
    if way != "FEATURE_EXTRACTION":
        lines += _back(manifest, template, base)
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """Text that cannot end its line, nor begin one with a fence: it may be anybody's."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _limits(manifest: Manifest, template: Template, base: Backbone) -> tuple[int, int]:
    """The most tokens of one text and of a pair, special ones too: the tokenizer's max_length."""
    encoder = base.row_encoder(manifest)
    return encoder.longest() - template.num_soft, encoder.longest(pair=True) - template.num_soft


def _predicts(manifest: Manifest, template: Template, base: Backbone) -> bool:
    reads = manifest.decoder is not None and manifest.decoder.reads == "start"
    return isinstance(template.parts[-1], MaskSlot) and (base.is_causal or reads)


def _around(manifest: Manifest, template: Template, base: Backbone) -> Around | None:
    """What stands around one text, where the template has words and the lines can put them there as tokens."""
    if not has_words(template):
        return None
    return around(template, manifest, base, predicts=_predicts(manifest, template, base))


def _cut(manifest: Manifest, template: Template, base: Backbone) -> str:
    side, exact = manifest.max_length.cut, _around(manifest, template, base) is not None
    if not has_words(template) or (exact and not template.has_pair):
        return f"Texts that are too long are cut on the {side}."
    single, pair = _limits(manifest, template, base)
    most = f"so that the row with the template's words has {pair if exact else single} tokens at most"
    if exact:
        return (
            f"A text without a pair is cut on the {side} where it is too long. promptmux cuts pairs there too, {most}; "
            "the lines below cut no pair."
        )
    said = f"promptmux cuts long texts on the {side}, {most}; the lines below cut nothing."
    text, _ = as_texts(template, base, predicts=_predicts(manifest, template, base))
    if not template.has_pair and (ends := split_otherwise(text, manifest, base)):
        said += (
            f" This tokenizer joins the ends of some texts ({'; '.join(ends)}) with the template's words beside them; "
            "promptmux never does, and gives other logits then."
        )
    return said


def _back(manifest: Manifest, template: Template, base: Backbone) -> list[str]:
    """The command that makes a prompt file of the folder again, with what PEFT's files do not say."""
    parts = tuple(part for part in template.parts if not isinstance(part, SoftSlot))
    words = ["promptmux", "import-peft", ".", "--task", manifest.task_id, "--template", str(Template(parts))]
    words += ["--max-length", str(_limits(manifest, template, base)[0])]
    words += ["--truncation-side", manifest.max_length.cut]
    words += ["--multi-label" if manifest.multi_label else "--single-label"]
    if isinstance(manifest.head, VerbalizerHead):
        for label, own in zip(manifest.labels, manifest.head.words, strict=True):
            words += ["--words", f"{label}={','.join(own)}"]
        words += ["--aggregate", "max"] if manifest.head.aggregate == "max" else []
    else:
        words += ["--labels", ",".join(manifest.labels)]
    command = shlex.join(words)
    odd = any(set(label) & set(",=") or label != label.strip() for label in manifest.labels)
    # A template may have lines; a fence in it would end the page's own.
    if odd or not command.replace("\n", "").isprintable() or "```" in command:
        return ["The labels cannot be named on a command line: importing the folder again gives others.", ""]
    return [
        "To make a prompt file of this folder again (thresholds are lost):",
        "",
        "```sh",
        command,
        "```",
        "",
    ]


def _code(manifest: Manifest, base: Backbone, config: Any, way: str, where: str) -> list[str]:
    template = parse_template(manifest.template)
    auto, features = _AUTO[way], way == "FEATURE_EXTRACTION"
    # In float32, as promptmux answers for whoever compares: transformers takes the checkpoint's own dtype.
    settings = "dtype=torch.float32"
    if way == "SEQ_CLS":
        settings += f", num_labels={len(manifest.labels)}"
        if _is_classifier(config) and config.num_labels != len(manifest.labels):
            settings += ", ignore_mismatched_sizes=True"  # its own head, for which the folder brings another
    lines = ["import torch"]
    lines += ["import torch.nn.functional as F"] if features else []
    lines += ["from peft import PeftModel"]
    lines += ["from safetensors.torch import load_file"] if features else []
    lines += [
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f'BASE, FOLDER = {json.dumps(where)}, "."  # the base model, and this folder',
        f'tokenizer = AutoTokenizer.from_pretrained(BASE, truncation_side="{manifest.max_length.cut}")',
        f"base = {auto}.from_pretrained(BASE, {settings})",
        "model = PeftModel.from_pretrained(base, FOLDER).eval()",
    ]
    lines += [f'head = load_file(FOLDER + "/{HEAD_FILE}")'] if features else []
    lines += ["", "", "@torch.no_grad()"]
    lines += [f"def logits(text{', text_pair=None' if template.has_pair else ''}):"]
    body = _row(manifest, template, base, segments=not features and getattr(config, "type_vocab_size", 0) > 1)
    if features:
        body += _states(manifest, template, base, config) + _head(manifest)
    elif isinstance(manifest.head, VerbalizerHead):
        body += _words(manifest, manifest.head, base, config)
    else:
        body += ["return model(**row).logits[0]"]
    return lines + [f"    {line}" for line in body]


def _is_classifier(config: Any) -> bool:
    return any(name.endswith("Classification") for name in config.architectures or ())


def _row(manifest: Manifest, template: Template, base: Backbone, *, segments: bool) -> list[str]:
    """Lines that make `row` of a text, and of its pair where the template has a place for one."""
    predicts = _predicts(manifest, template, base)
    whole = as_texts(template, base, predicts=predicts)
    if not has_words(template):
        return encoded(whole, _limits(manifest, template, base), segments=segments)
    alone = Template(tuple(part for part in template.parts if not isinstance(part, PairSlot)))
    if (parts := _around(manifest, template, base)) is not None:
        one = put_between(parts, str(alone), cut_left=manifest.max_length.cut == "left")
    else:
        one = encoded(as_texts(alone, base, predicts=predicts), None, segments=segments)
    if not template.has_pair:
        return one
    # Words that stand behind the pair are there without it too.
    two = encoded(whole, None, segments=segments)
    return [
        "if text_pair is None:",
        *(f"    {line}" for line in one),
        "else:",
        *(f"    {line}" for line in two),
    ]


def _states(manifest: Manifest, template: Template, base: Backbone, config: Any) -> list[str]:
    """Lines that make `x` [hidden], what the head reads."""
    soft, pooling = template.num_soft, manifest.pooling
    lines = []
    if not soft:
        # PEFT adds its number of virtual tokens to the positions that it is given.
        begin = config.max_position_embeddings - base.max_positions + manifest.position_offset
        lines += [
            'at = torch.arange(row["input_ids"].shape[1])[None] - model.active_peft_config.num_virtual_tokens',
            f'row["position_ids"] = at + {begin}',
        ]
    lines.append("states = model(**row).last_hidden_state[0]  # [places, hidden]")
    if pooling == "mean":
        lines += [
            'text = made["special_tokens_mask"][0] == 0',
            "if not text.any():  # an empty text: its special tokens stand in",
            "    text[:] = True",
            f"x = states[{soft}:][text].mean(0)",
        ]
    elif pooling == "pooler":
        model = "model.get_base_model()"
        if config.model_type == "albert":
            lines.append(f"x = {model}.pooler_activation({model}.pooler(states[{soft}]))")
        else:
            lines.append(f"x = {model}.pooler(states[None, {soft}:])[0]")
    else:
        places = {"cls": f"states[{soft}]", "last": "states[-1]", "row": "states.mean(0)"}
        lines.append(f"x = {places[pooling] if isinstance(pooling, str) else _place(pooling)}")
    return lines


def _place(number: int) -> str:
    """A place of a row from its begin or its end, or the last or first one of a row that is too short for it."""
    if number in (0, -1):
        return f"states[{number}]"
    return f"states[min({number}, len(states) - 1)]" if number > 0 else f"states[max({number}, -len(states))]"


def _head(manifest: Manifest) -> list[str]:
    """Lines from `x` to the logits."""
    lines = []
    if isinstance(manifest.head, LabelEmbeddingHead):
        vectors = 'F.normalize(head["verbalizer.label_embeddings"], dim=-1)'
        lines.append(f"x = {manifest.head.scale!r} * {vectors} @ F.normalize(x, dim=-1)")
    elif isinstance(manifest.head, LinearHead):
        for at, layer in enumerate(manifest.head.layers):
            bias = f'head["head.{at}.bias"]' if layer.bias else "None"
            lines.append(f'x = F.linear(x, head["head.{at}.weight"], {bias})')
            if layer.activation is not None:
                lines.append(f"x = {'torch' if layer.activation == 'tanh' else 'F'}.{layer.activation}(x)")
            if layer.norm_eps is not None:
                norm = f'head["head.{at}.norm.weight"], head["head.{at}.norm.bias"], {layer.norm_eps!r}'
                lines.append(f"x = F.layer_norm(x, x.shape, {norm})")
    if (calibration := manifest.calibration) is not None:
        if calibration.bias is not None:
            lines.append(f"x = x + torch.tensor({list(calibration.bias)!r})")
        lines.append(f"x = x / {calibration.temperature!r}")
    return [*lines, "return x"]


def _words(manifest: Manifest, head: VerbalizerHead, base: Backbone, config: Any) -> list[str]:
    ids = [
        [label_word_id(base.tokenizer, word, manifest.template, base.name) for word in words]
        for words in head.words
    ]
    reduced = "amax()" if head.aggregate == "max" else "mean()"
    given = "**row"
    if base.shape.decoder is not None:
        # mBART has no start token of its own: its decoder begins with the row's last, the language's code.
        start = "torch.tensor([[model.config.decoder_start_token_id]])"
        start = 'row["input_ids"][:, -1:]' if config.decoder_start_token_id is None else start
        given += f", decoder_input_ids={start}"
    return [
        f"words = {ids!r}  # token ids of the label words",
        f"scores = model({given}).logits[0, -1]",
        f"return torch.stack([scores[ids].{reduced} for ids in words])",
    ]
