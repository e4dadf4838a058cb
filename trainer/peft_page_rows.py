"""Owns the lines of an exported README.md that make `row`, the tokens of one text or of a text and its pair.

Knows tokenizers as transformers has them; knows no prompt and no head.
"""

from __future__ import annotations

import json

from trainer.peft_template import Around


def encoded(written: tuple[str, str | None], limits: tuple[int, int] | None, *, segments: bool) -> list[str]:
    """Lines that make `row`: a text's tokens, as the base model wants them, `limits` of one text and of a pair."""
    first, second = written
    texts = [_written(first, "text")]
    if second is not None:
        # In lists: a call with two strings drops the second if it is empty, and with it the row's last token.
        texts = [f"[{texts[0]}]", f"None if text_pair is None else [{_written(second, 'text_pair')}]"]
    wanted = '"input_ids", "attention_mask"' + (', "token_type_ids"' if segments else "")
    settings = ['return_tensors="pt"', "return_special_tokens_mask=True"]
    settings += ["return_token_type_ids=True"] if segments else []
    if limits is not None:
        single, pair = limits
        pairs = f" if text_pair is None else {pair}" if second is not None and single != pair else ""
        settings += ["truncation=True", f"max_length={single}{pairs}"]
    return [
        f"made = tokenizer({', '.join(texts + settings)})",
        f"row = {{key: made[key] for key in ({wanted}) if key in made}}",
    ]


def put_between(parts: Around, template: str, *, cut_left: bool) -> list[str]:
    """Lines that make `row` of a text between a template's words, whose tokens do not depend on it."""
    text = f"{parts.lead!r} + text" if parts.lead else "text"
    kept = f"[-{parts.most}:]" if cut_left else f"[:{parts.most}]"
    return [
        f"# the tokens of {json.dumps(template)}",
        f'ids = tokenizer({text}, add_special_tokens=False)["input_ids"]{kept}',
        f'row = {{"input_ids": torch.tensor([[*{parts.before}, *ids, *{parts.behind}]])}}',
        'row["attention_mask"] = torch.ones_like(row["input_ids"])',
    ]


def _written(text: str, name: str) -> str:
    return name if text == f"{{{name}}}" else f"f{text!r}"
