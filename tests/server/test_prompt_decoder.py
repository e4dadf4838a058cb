from typing import Any

import pytest

from prompt_store import BackboneRef, IncompatiblePrompt, NotSafetensors
from server.errors import NotReady
from server.prompt_decoder import PromptDecoder
from tests.server.fakes import REF, FakeBackbone, prompt_bytes


@pytest.fixture
def decoder() -> PromptDecoder:
    decoder, backbone = PromptDecoder(10**6), FakeBackbone()
    any_backbone: Any = backbone
    decoder.serve_with(any_backbone)
    return decoder


def test_a_prompt_and_what_it_takes(decoder: PromptDecoder) -> None:
    data = prompt_bytes()
    checked, size = decoder.decode(data)
    assert checked.prompt.manifest.task_id == "sentiment"
    assert checked.encoder.encode(["x y"])
    many = prompt_bytes(labels=[f"label number {number}" for number in range(500)])
    assert decoder.decode(many)[1] > size + 4 * 500 * len("label number 1")


def test_what_does_not_fit(decoder: PromptDecoder) -> None:
    other = BackboneRef.model_validate({**REF.model_dump(), "fingerprint": "0" * 64})
    with pytest.raises(IncompatiblePrompt):
        decoder.decode(prompt_bytes(ref=other))
    with pytest.raises(NotSafetensors):
        decoder.decode(b"noise")
    with pytest.raises(NotReady):
        PromptDecoder(10**6).decode(prompt_bytes())
