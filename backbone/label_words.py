"""Which token a verbalizer's word is.

Owns the rule that a label word is one token of the backbone, as it stands at the mask. Knows nothing of heads.
"""

from __future__ import annotations

from backbone.tokenizer import TextTokenizer
from prompt_store import IncompatiblePrompt


def label_word_id(tokenizer: TextTokenizer, word: str, template: str, name: str) -> int:
    """The vocabulary id of a verbalizer's word, as it stands at the template's mask.

    Raises:
        IncompatiblePrompt: the word is not one token of the backbone `name`.

    """
    before = template.split("{mask}")[0]
    ids = tokenizer.encode_one(word.strip(), continues=before.endswith(" "))
    if any(i in tokenizer.special_ids for i in ids):
        raise IncompatiblePrompt(f"the label word {word!r} is not in the vocabulary of {name}")
    if len(ids) != 1:
        raise IncompatiblePrompt(
            f"the label word {word!r} is {len(ids)} tokens for {name}; a verbalizer's words must be one token"
        )
    return ids[0]
