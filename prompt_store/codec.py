"""Prompt ↔ the bytes of one .safetensors file, with every check that needs no backbone.

Owns: the file format and its checks. Must not know: where bytes come from or go to, torch, devices.

The metadata has one key, `promptmux`: the manifest's JSON. Tensors, all F32 or F16:

    soft_prompt                              [num_soft, embedding_width]       iff the template has soft slots
    prefix.{encoder,decoder,cross}.key       [layers, P, kv_heads, head_dim]   optional; one P for all; the
                                                                               stack's own layers and heads
    prefix.{encoder,decoder,cross}.value     the same                          iff its key is there
    head.{i}.weight, head.{i}.bias           [out, in], [out]                  a linear head's layers
    head.{i}.norm.weight, head.{i}.norm.bias [out], [out]                      iff the layer has norm_eps
    verbalizer.label_embeddings              [labels, hidden_size]             a label-embedding head

An ensemble (a manifest with members) has all of these once for each member, as `member.{k}.NAME`.

Nothing is allocated on a file's word: the header's length is capped before it is read, and a tensor's shape
must account for exactly the bytes that are there before an array is made, which is a view of them.
"""

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np

from prompt_store.errors import IncompatiblePrompt, InvalidPrompt
from prompt_store.header import TensorEntry, read_header
from prompt_store.manifest import LabelEmbeddingHead, LinearHead, Manifest, parse_manifest
from prompt_store.members import bare_names, member_tensor
from prompt_store.model_ref import BackboneRef
from prompt_store.prompt import Array, Prompt
from prompt_store.template import parse_template

MAX_BYTES: Final = 64 * 2**20
METADATA_KEY: Final = "promptmux"
_PREFIX_STACKS: Final = ("encoder", "decoder", "cross")
_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
# The smallest float32 that rounds to infinity in bfloat16: half a step above its largest finite value.
_BFLOAT16_OVERFLOW: Final = np.uint32(0x7F7F8000).view(np.float32)

Shape = tuple[int | None, ...]  # None: any size ≥ 1


def version_of(data: bytes) -> str:
    """The version that these bytes are: their SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def encode_prompt(manifest: Manifest, tensors: Mapping[str, Array]) -> bytes:
    """The file of this prompt; the same input gives the same bytes. InvalidPrompt as `decode_prompt`."""
    entries: dict[str, Any] = {"__metadata__": {METADATA_KEY: manifest.canonical_json().decode()}}
    payload: list[bytes] = []
    end = 0
    # Wider dtypes first, as the safetensors library does, so that every tensor is aligned; then by name.
    for name in sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)):
        tensor = tensors[name]
        dtype = next((code for code, dtype in _DTYPES.items() if dtype == tensor.dtype), None)
        if dtype is None:
            raise InvalidPrompt(f"tensor {name}: expected float32 or float16, got {tensor.dtype}")
        begin, end = end, end + tensor.nbytes
        entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        payload.append(tensor.tobytes())
    header = json.dumps(entries, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    data = b"".join((len(header).to_bytes(8, "little"), header, *payload))
    decode_prompt(data)
    return data


def decode_prompt(data: bytes, *, max_bytes: int = MAX_BYTES) -> Prompt:
    """Check `data` and read it; the tensors are read-only views of it.

    NotSafetensors when it is something else entirely; InvalidTemplate or IncompatiblePrompt when that is what
    is wrong with the manifest; InvalidPrompt, naming expected and got, for the rest.
    """
    if len(data) > max_bytes:
        raise InvalidPrompt(f"file: expected at most {max_bytes} bytes, got {len(data)}")
    header = read_header(data)
    if header.metadata.keys() != {METADATA_KEY}:
        raise InvalidPrompt(
            f'metadata: expected the key "{METADATA_KEY}" alone, got {len(header.metadata)} keys'
        )
    manifest = parse_manifest(header.metadata[METADATA_KEY])
    expected = _expected_shapes(manifest, header.tensors)
    _check_names(expected, header.tensors)
    _check_spans(header.tensors, len(data) - header.size)
    tensors = {
        name: _view(data, header.size, name, entry, expected[name]) for name, entry in header.tensors.items()
    }
    _check_prefix_lengths(tensors)
    return Prompt(manifest, MappingProxyType(tensors))


def check_finite_in(prompt: Prompt, dtype: Literal["float32", "bfloat16", "float16", "float64"]) -> None:
    """InvalidPrompt when a value is finite in the file but would not be in the serving `dtype`."""
    for name, tensor in prompt.tensors.items():
        if dtype == "bfloat16":
            finite = bool(np.all(np.abs(tensor) < _BFLOAT16_OVERFLOW))
        else:
            with np.errstate(over="ignore"):
                finite = bool(np.all(np.isfinite(tensor.astype(dtype, copy=False))))
        if not finite:
            raise InvalidPrompt(f"tensor {name}: expected values that are finite in {dtype}, got larger ones")


def check_backbone(manifest: Manifest, ref: BackboneRef) -> None:
    """IncompatiblePrompt unless the prompt was made for the backbone `ref`, whatever its name is here."""
    wanted = manifest.backbone.model_dump(exclude={"name"})
    for field, got in ref.model_dump(exclude={"name"}).items():
        if wanted[field] != got:
            raise IncompatiblePrompt(
                f"backbone {field}: the prompt expects {wanted[field]}, this backbone has {got}"
            )
    if manifest.decoder is not None and ref.decoder is None:
        raise IncompatiblePrompt(
            "the prompt gives a decoder something to read, and this is no encoder-decoder"
        )


def _expected_shapes(manifest: Manifest, present: Mapping[str, TensorEntry]) -> dict[str, Shape]:
    """What the manifest asks for, by name; prefixes, which it leaves open, once half a pair is there."""
    template, backbone, head = parse_template(manifest.template), manifest.backbone, manifest.head
    names = bare_names(present) if manifest.members else present.keys()
    shapes: dict[str, Shape] = {}
    if num_soft := template.num_soft:
        shapes["soft_prompt"] = (num_soft, backbone.embedding_width)
    for stack in _PREFIX_STACKS:
        pair = (f"prefix.{stack}.key", f"prefix.{stack}.value")
        if any(name in names for name in pair):
            own = backbone.stack(stack)
            shapes |= dict.fromkeys(pair, (own.layers, None, own.kv_heads, own.head_dim))
    if isinstance(head, LinearHead):
        for i, layer in enumerate(head.layers):
            shapes[f"head.{i}.weight"] = (layer.out_features, layer.in_features)
            if layer.bias:
                shapes[f"head.{i}.bias"] = (layer.out_features,)
            if layer.norm_eps is not None:
                shapes |= dict.fromkeys(
                    (f"head.{i}.norm.weight", f"head.{i}.norm.bias"), (layer.out_features,)
                )
    elif isinstance(head, LabelEmbeddingHead):
        shapes["verbalizer.label_embeddings"] = (len(manifest.labels), backbone.hidden_size)
    if not manifest.members:
        return shapes
    if not shapes:
        raise InvalidPrompt("members: expected tensors in which they differ, got a prompt that has none")
    return {
        member_tensor(at, name): shape
        for at in range(len(manifest.members))
        for name, shape in shapes.items()
    }


def _check_names(expected: Mapping[str, Shape], got: Mapping[str, TensorEntry]) -> None:
    if missing := sorted(expected.keys() - got.keys()):
        raise InvalidPrompt(f"tensors: expected {', '.join(missing[:5])}, got none of that name")
    if extra := len(got.keys() - expected.keys()):
        names = ", ".join(sorted(expected)[:10]) or "none"
        raise InvalidPrompt(f"tensors: expected {names}, got {extra} more")


def _check_spans(entries: Mapping[str, TensorEntry], size: int) -> None:
    """The tensors must tile the rest of the file: no hole, no overlap, nothing before or after."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
        if entry.begin != end:
            raise InvalidPrompt(f"tensor {name}: expected to begin at byte {end}, got {entry.begin}")
        end = entry.end
    if end != size:
        raise InvalidPrompt(f"file: expected {end} bytes of tensors, got {size}")


def _view(data: bytes, start: int, name: str, entry: TensorEntry, expected: Shape) -> Array:
    dtype = _DTYPES.get(entry.dtype)
    if dtype is None:
        raise InvalidPrompt(f"tensor {name}: expected dtype F32 or F16, got another")
    if len(entry.shape) != len(expected) or not all(
        size == want or (want is None and size >= 1) for size, want in zip(entry.shape, expected, strict=True)
    ):
        shown = ["P" if want is None else want for want in expected]
        raise InvalidPrompt(f"tensor {name}: expected shape {shown}, got {_shown(entry.shape)}")
    count = entry.count
    if (size := entry.end - entry.begin) != count * dtype.itemsize:
        raise InvalidPrompt(
            f"tensor {name}: expected {count * dtype.itemsize} bytes by its shape, got {size}"
        )
    tensor: Array = np.frombuffer(data, dtype, count, start + entry.begin).reshape(entry.shape)
    if not tensor.flags.aligned:  # only a foreign writer's odd offsets; torch wants aligned memory
        tensor = tensor.copy()
        tensor.flags.writeable = False
    if not np.all(np.isfinite(tensor)):
        raise InvalidPrompt(f"tensor {name}: expected finite values, got NaN or infinity")
    return tensor


def _check_prefix_lengths(tensors: Mapping[str, Array]) -> None:
    lengths = {tensor.shape[1] for name, tensor in tensors.items() if "prefix." in name}
    if len(lengths) > 1:
        raise InvalidPrompt(f"prefix tensors: expected one length, got {sorted(lengths)}")


def _shown(shape: tuple[int, ...]) -> str:
    """A shape as a stranger wrote it, without letting it fill the message."""
    if len(shape) > 8 or any(size >= 10**12 for size in shape):
        return f"{len(shape)} sizes"
    return str(list(shape))
