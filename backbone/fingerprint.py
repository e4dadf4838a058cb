"""A backbone's fingerprint: what makes two copies of a model the same model.

Owns the hash over the stored files (configuration, weights, tokenizer) and its cache. Knows neither torch nor
transformers, so that a library upgrade cannot change a fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from pathlib import Path
from typing import Any

from backbone.errors import BackboneError

# Keys that a library writes into config.json without the function of the model depending on them.
_VOLATILE_KEYS = frozenset({
    "_attn_implementation", "_attn_implementation_autoset", "_name_or_path", "architectures", "auto_map",
    "dtype", "finetuning_task", "gradient_checkpointing", "id2label", "label2id", "num_labels",
    "output_attentions", "output_hidden_states", "problem_type", "return_dict", "task_specific_params",
    "torch_dtype", "transformers_version", "use_cache",
})  # fmt: skip
# What transformers takes from tokenizer_config.json for some classes, whatever tokenizer.json says: their names there
# and here. What else makes another tokenizer is told when it is loaded (`backbone.checkpoint`).
_REBUILT = {
    "do_lower_case": "lowercase", "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars", "add_prefix_space": "add_prefix_space",
}  # fmt: skip
_CHUNK = 1 << 24
_ADVICE = (
    "; a model that has its weights as pytorch_model.bin, a pickle, which may run code and is not read, is loaded with "
    "transformers where it is trusted, and written anew with save_pretrained"
)


def fingerprint(folder: Path, *, cache: Path | None = None) -> str:
    """Return the SHA-256 (hex) of a checkpoint folder's architecture, weights and tokenizer.

    Hashed are the keys of `config.json` that define the architecture, every tensor's name, type, shape and bytes as
    stored (so that sharding and header order do not matter), and `tokenizer.json`, with what `tokenizer_config.json`
    says against it, if it does. `cache` is a JSON file that remembers the result by the files' sizes and modification
    times.

    Raises:
        BackboneError: a file is missing or is no safetensors file.

    """
    config, weights, tokenizer = _files(folder)
    own = folder / "tokenizer_config.json"
    files = [config, *weights, tokenizer, *([own] if own.is_file() else [])]
    key = hashlib.sha256(
        json.dumps([[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files]).encode()
    ).hexdigest()
    known = _read_cache(cache)
    if key in known:
        return known[key]
    result = _hash(config, weights, tokenizer, _contradictions(tokenizer, own) if own.is_file() else {})
    _write_cache(cache, {**known, key: result})
    return result


def _files(folder: Path) -> tuple[Path, list[Path], Path]:
    config, tokenizer = folder / "config.json", folder / "tokenizer.json"
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if index.is_file() and not whole.is_file():  # transformers, too, prefers the whole file
        weights = sorted({folder / name for name in _json(index)["weight_map"].values()})
    else:
        weights = [whole]
    for file in (config, *weights, tokenizer):
        if not file.is_file():
            raise BackboneError(
                f"{file.name} is missing in {folder}: a backbone is a Hugging Face folder with config.json, "
                "safetensors weights and a fast tokenizer (tokenizer.json)"
                + (_ADVICE if file in weights else "")
            )
    return config, weights, tokenizer


def _contradictions(tokenizer: Path, own: Path) -> dict[str, Any]:
    """Settings of tokenizer_config.json with which transformers makes another tokenizer than tokenizer.json's."""
    whole, given = _json(tokenizer), _json(own)
    steps = [*_steps(whole.get("normalizer")), *_steps(whole.get("pre_tokenizer"))]
    found = {}
    for name, there in _REBUILT.items():
        said = {json.dumps(step[there]) for step in steps if there in step}
        if given.get(name) is not None and said and said != {json.dumps(given[name])}:
            found[name] = given[name]
    return found


def _steps(part: Any) -> list[dict[str, Any]]:
    """A normaliser or pre-tokeniser of tokenizer.json, or the parts of a sequence of them."""
    if not isinstance(part, dict):
        return []
    inner = [*(part.get("normalizers") or []), *(part.get("pretokenizers") or [])]
    return [step for one in inner for step in _steps(one)] or [part]


def _hash(config: Path, weights: list[Path], tokenizer: Path, rebuilt: dict[str, Any]) -> str:
    digest = hashlib.sha256(b"promptmux backbone 1\n")
    keys = {k: v for k, v in _json(config).items() if k not in _VOLATILE_KEYS}
    digest.update(json.dumps(keys, sort_keys=True, separators=(",", ":")).encode())
    tensors: dict[str, bytes] = {}
    for file in weights:
        tensors.update(_tensor_digests(file))
    for name in sorted(tensors):
        digest.update(tensors[name])
    digest.update(hashlib.sha256(tokenizer.read_bytes()).digest())
    if rebuilt:
        digest.update(json.dumps(rebuilt, sort_keys=True).encode())
    return digest.hexdigest()


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise BackboneError(f"{file} is torn or no JSON") from error
    if not isinstance(content, dict):
        raise BackboneError(f"{file} is no JSON object")
    return content


def _tensor_digests(file: Path) -> dict[str, bytes]:
    if file.stat().st_size < 8:
        raise BackboneError(f"{file} is torn: {file.stat().st_size} bytes")
    with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = 8 + int.from_bytes(data[:8], "little")
        if start > len(data):
            raise BackboneError(
                f"{file} is torn: its header claims {start - 8} bytes, the file has {len(data)}"
            )
        try:
            header = json.loads(data[8:start])
        except ValueError as error:
            raise BackboneError(f"{file} is not a safetensors file") from error
        digests = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            digest = hashlib.sha256(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
            for at in range(start + begin, start + end, _CHUNK):
                digest.update(data[at : min(at + _CHUNK, start + end)])
            digests[name] = digest.digest()
        return digests


def _read_cache(cache: Path | None) -> dict[str, str]:
    if cache is None:
        return {}
    try:
        entries = json.loads(cache.read_bytes())
    except (OSError, ValueError):
        return {}  # absent or torn: it is only a cache, and the hash is computed again
    return entries if isinstance(entries, dict) else {}


def _write_cache(cache: Path | None, entries: dict[str, str]) -> None:
    if cache is None:
        return
    temporary = cache.with_name(f"{cache.name}.{os.getpid()}")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(entries))
        temporary.replace(cache)
    except OSError:
        temporary.unlink(missing_ok=True)  # a read-only home only costs the next start the hashing
