"""What docs/reference/ says beside what the code says; `reference` fails where a name here or there is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SETTINGS = """
Each setting is a flag (`max_batch_rows` is `--max-batch-rows`), a variable (`PROMPTMUX_MAX_BATCH_ROWS`) and a key of
the TOML file that `--config` names. A flag wins over a variable, a variable over the file, the file over the default.
The server prints what holds when it starts, secrets hidden (log event `settings`). A variable with our prefix that is
no setting is told (`unknown_variables`); an unknown flag or key ends the start with exit code 2.

Lists take commas: `--metrics-tasks sentiment,topic`, in TOML an array.
"""

ROUTES_TEXT = """
The same with every field is served by each port itself, at `/docs` and `/openapi.json`. Where the server has keys,
send `Authorization: Bearer KEY`; the key must have the route's scope ([keys](settings.md): `api_keys`). `/healthz` and
`/readyz` need none. Every error is `application/problem+json` with a `code`: [errors](errors.md).

Answers of writes have `X-Store-Revision`, `store_revision` and `durability`; `?dry_run=1` checks, and changes nothing.
"""

_READING = ("invalid_task_id", "unknown_task", "store_unavailable", "corrupt_version")
_SERVING = ("not_ready", "draining")
_BODY = (
    "invalid_json",
    "incomplete_body",
    "body_timeout",
    "body_too_large",
    "unsupported_media_type",
    "invalid_request",
)
_PREPARING = (
    "unknown_version", "incompatible_prompt", "golden_mismatch", "not_finite", "prompt_refused", "digest_mismatch",
)  # fmt: skip
_GUARDED = ("precondition_required", "revision_conflict", "invalid_alias", "unknown_alias")

ROUTES: Mapping[str, Sequence[str]] = {
    "POST /classify": (
        *_BODY, "empty_input", "not_offered", "text_too_long", "too_many_inputs", "invalid_task_id", "invalid_alias",
        "unknown_task", "unknown_version", "unknown_alias", "revision_lost", "overloaded", "inference_failed",
        "numerical_error", *_SERVING, "request_timeout", "revision_not_reached", "prompt_unavailable", "unavailable",
    ),
    "GET /healthz": (),
    "GET /readyz": _SERVING,
    "GET /v1/models": (),
    "GET /tasks": (),
    "GET /metrics": (),
    "GET /admin/tasks": ("invalid_task_id", "invalid_request", "store_unavailable"),
    "GET /admin/tasks/{task_id}": _READING,
    "GET /admin/tasks/{task_id}/history": (*_READING, "invalid_request"),
    "GET /admin/tasks/{task_id}/aliases/{alias}": (*_READING, "invalid_alias", "unknown_alias"),
    "GET /admin/tasks/{task_id}/versions/{version}": (*_READING, "invalid_request", "unknown_version"),
    "PUT /admin/tasks/{task_id}/versions/{version}": (
        *_BODY, "invalid_task_id", "not_safetensors", "invalid_prompt", "invalid_template", *_PREPARING[1:],
        *_SERVING, "store_unavailable",
    ),
    "PUT /admin/tasks/{task_id}/aliases/{alias}": (*_BODY, *_READING, *_GUARDED, *_PREPARING, *_SERVING),
    "POST /admin/tasks/{task_id}/rollback": (*_BODY, *_READING, *_GUARDED, *_PREPARING, *_SERVING),
    "POST /admin/tasks/{task_id}/promote": (*_BODY, *_READING, *_GUARDED, *_PREPARING, *_SERVING),
    "DELETE /admin/tasks/{task_id}/aliases/{alias}": (*_READING, *_GUARDED, "invalid_request"),
    "DELETE /admin/tasks/{task_id}/versions/{version}": (
        *_READING, "unknown_version", "version_in_use", "invalid_request",
    ),
    "DELETE /admin/tasks/{task_id}": (*_READING, "version_in_use", "invalid_request"),
}  # fmt: skip

ANY_ROUTE = (
    "unauthenticated", "forbidden", "unknown_route", "method_not_allowed", "bad_request", "invalid_http",
    "head_too_large", "head_timeout", "internal_error",
)  # fmt: skip
NOT_OVER_HTTP = ("store_error", "not_found")  # bases of the tree, raised as one of their kinds

COMMANDS = """
`promptmux --help` lists the commands, `promptmux COMMAND --help` a command's options. Exit codes: 0 done; 1 failed (and
`doctor`: there is a problem); 2 bad input or settings, with one line on standard error; 130 and 143 interrupted.
"""

PROMPT_FILE = """
One task's prompt is one `.safetensors` file. Its metadata has one key, `promptmux`: the manifest as JSON with sorted
keys and no creation time, so that the same training gives the same bytes. A version is the SHA-256 of the file. Pickle
is never read. `promptmux inspect FILE` checks a file and shows what is in it (`--json`: the manifest); Python writes
one with `prompt_store.encode_prompt(manifest, tensors)`, which makes every check below. [`promptmux
import-peft`](../guides/migrate-from-peft.md) makes one of what PEFT wrote.

A file's `format` is 1. A reader refuses a newer one with `incompatible_prompt`, unknown fields and values with
`invalid_prompt`, and whatever was not made for its backbone with `incompatible_prompt`.
"""

TENSORS = """
## The tensors

Float32 or float16, finite, in the file back to back; exactly these and no others. A prompt may have a soft prompt, a
prefix, or both, and one head. P is the prefix's length, the same in all of its tensors; a key comes with its value. A
layer of a linear head that has `norm_eps` has `head.{i}.norm.weight` and `head.{i}.norm.bias`, each [out_features].
An ensemble has all of this once for each member k, counted from 0: `member.0.soft_prompt`, `member.1.soft_prompt`, …

Templates are parsed, never run: `{text}` once, `{text_pair}` at most once, `{mask}`, `{soft:20}` (virtual tokens),
`{start}` (where the leading special tokens go), `{{` and `}}` for braces.
"""

MANIFEST: Mapping[str, str] = {
    "format": "the format's version",
    "task_id": "the task",
    "kind": "`tag` and `generate` are reserved",
    "labels": "their order is the order of the scores",
    "multi_label": "each label by itself (sigmoid), not one of them (softmax)",
    "thresholds": "multi-label: from which score each label counts; 0.5 each where there are none",
    "method": "how it was made, for people: `prompt-tuning`, `p-tuning`, `prefix-tuning`, `p-tuning-v2`, "
    "`head-only`, `hard-prompt`, …",
    "backbone": "the model that it was made for",
    "backbone.name": "for people; decides nothing",
    "backbone.fingerprint": "SHA-256 of what makes the model: must be the server's own",
    "backbone.embedding_width": "width of a soft prompt's rows",
    "backbone.hidden_size": "width of the states that the head reads",
    "backbone.layers": "layers",
    "backbone.kv_heads": "heads of keys and values",
    "backbone.head_dim": "width of one of them",
    "backbone.decoder": "of an encoder-decoder, whose encoder has the shapes above; left out for all others",
    "backbone.decoder.layers": "layers",
    "backbone.decoder.kv_heads": "heads of keys and values",
    "backbone.decoder.head_dim": "width of one of them",
    "template": "how the text is wrapped, below",
    "pooling": "which state the head reads (`mean`: of the text, `row`: of every place), or its place by number",
    "position_offset": "how far text positions shift: a soft prompt's length, 0 for prefixes, PEFT's their length",
    "decoder": "what an encoder-decoder's decoder reads; the head then reads its states. Left out: the encoder's",
    "decoder.reads": "its start token; that and the mask token; the row's tokens shifted right",
    "decoder.position_offset": "how far its positions shift: 0, or as PEFT counts the length of its prefix",
    "max_length": "how much is read",
    "max_length.tokens": "so many tokens",
    "max_length.counts": "`row`: every token of the row, soft ones too; `text`: those of the texts alone",
    "max_length.cut": "which side of a longer text goes",
    "head": "from the pooled state to scores: one of three types",
    "head(linear).type": "layers whose weights are in the file",
    "head(linear).layers": "first to last",
    "head(linear).layers[].in_features": "the width before",
    "head(linear).layers[].out_features": "the width after; of the last one the number of labels",
    "head(linear).layers[].bias": "whether there is one",
    "head(linear).layers[].activation": "after the layer",
    "head(linear).layers[].norm_eps": "a layer norm after that, with this epsilon; left out where there is none",
    "head(verbalizer).type": "label words on the model's own language-model head, read at `{mask}`",
    "head(verbalizer).words": "a list of words for each label",
    "head(verbalizer).aggregate": "of several words' scores",
    "head(label_embeddings).type": "scaled cosine to one vector for each label",
    "head(label_embeddings).descriptions": "what each vector was made from",
    "head(label_embeddings).scale": "the factor",
    "calibration": "scores = (logits + bias) / temperature",
    "calibration.temperature": "",
    "calibration.bias": "one for each label",
    "golden": "examples that must come out right on each server before the version is served there",
    "golden[].text": "the text",
    "golden[].text_pair": "the second text",
    "golden[].label": "the label that must come out",
    "training": "how it was made: digests of the data, seeds, scores, settings; decides nothing",
    "members": "of an [ensemble](../methods/ensembles.md), 2 to 16 of them; left out of every other prompt's file",
    "members[].calibration": "the member's own; the ensemble has none beside these",
    "members[].calibration.temperature": "",
    "members[].calibration.bias": "one for each label",
    "members[].version": "the file that it came from; decides nothing",
    "members[].training": "how this member was made; decides nothing",
}

ERRORS = """
Every answer that is no success is `application/problem+json` with a `code` that stays; `detail` is a sentence for a
person, `request_id` finds the log line, and `error` is what vLLM's clients read. Neither repeats what was sent. With
`Retry-After` the same request may be sent again after so many seconds; nothing was changed by it.

```json
{"type": "urn:promptmux:error:unknown_task", "title": "Unknown task", "status": 404, "code": "unknown_task",
 "detail": "there is no such task; GET /tasks lists them", "request_id": "5d3f0a…",
 "error": {"message": "…", "type": "NotFoundError", "param": null, "code": 404}}
```
"""

FROM_THE_ROUTER: Mapping[str, tuple[int, str]] = {
    "unknown_route": (404, "There is no such path."),
    "method_not_allowed": (405, "The path does not take this method."),
}

_RETRY = "send it again after `Retry-After`"
WHAT_TO_DO: Mapping[str, str] = {
    "bad_request": "read `detail`",
    "invalid_http": "send HTTP/1.1; a proxy in front may speak something else",
    "invalid_json": "send one JSON object in UTF-8; `detail` names line and column",
    "incomplete_body": "send the whole body before you close",
    "unauthenticated": "send `Authorization: Bearer KEY` with a key of this server (`promptmux key` makes one)",
    "forbidden": "use a key with the scope that the route needs ([routes](routes.md))",
    "not_found": "check the name",
    "unknown_alias": "`promptmux tasks TASK` lists the aliases; a new task has `current` once one was set",
    "unknown_task": "`promptmux tasks` lists them; was it published to the store that this server reads?",
    "unknown_version": "`promptmux tasks TASK` lists them; publish the file first",
    "unknown_route": "`/docs` lists the paths; admin paths are on the admin port",
    "method_not_allowed": "`/docs` lists the methods",
    "head_timeout": "send the headers faster; often a half-open connection",
    "body_timeout": "send the body within `body_timeout` seconds",
    "version_in_use": "move or delete the alias first, or delete the task with `?force=1`",
    "revision_conflict": "somebody else moved the alias: read it again (`current_revision`), decide again",
    "revision_lost": "the store lost that history: publish again, use the new `X-Store-Revision`",
    "body_too_large": "send fewer texts at once, or raise `max_body_bytes` (a prompt file: `max_prompt_bytes`)",
    "text_too_long": "cut it, or raise `max_text_chars`",
    "too_many_inputs": "send fewer at once, or raise `max_inputs`",
    "not_safetensors": "upload a promptmux prompt file, not a pickle or an archive",
    "unsupported_media_type": "set Content-Type as `detail` says; no compression",
    "digest_mismatch": "the bytes are not those of the version in the path: hash the file that you send",
    "empty_input": "send at least one text that is not empty",
    "golden_mismatch": "the prompt does here not what it did when trained: another dtype or backbone? Train again",
    "incompatible_prompt": "made for another backbone or by a newer promptmux: train for this one, or upgrade",
    "invalid_alias": "`[a-z0-9][a-z0-9._-]{0,63}`, weights from 1, no version twice",
    "invalid_prompt": "`promptmux inspect FILE` says what is wrong; train or convert again",
    "invalid_request": "`detail` names the field",
    "invalid_task_id": "`[a-z0-9][a-z0-9._-]{0,63}`",
    "invalid_template": "`detail` names the column; [the grammar](prompt-file.md)",
    "not_finite": "the prompt's numbers overflow in the server's dtype: train again, or serve with `--dtype float32`",
    "not_offered": "leave the option out: it is vLLM's and not offered here",
    "prompt_refused": "read `detail`; the file is whole, but must not be served",
    "precondition_required": "send `If-Match` with the alias's revision (its ETag), for a new one `If-None-Match: *`",
    "overloaded": f"{_RETRY}; if it stays, add servers or cores ([scale](../guides/scale.md))",
    "head_too_large": "send fewer or shorter headers",
    "corrupt_version": "its bytes in the store are lost or altered: `promptmux doctor --deep`, publish the file again",
    "inference_failed": "the log has the reason; after a rollout go back ([roll back](../guides/rollback.md))",
    "internal_error": "a defect: the log has it under the request id; report it",
    "numerical_error": "the prompt gives no numbers for this text: go back to the version before, train again",
    "store_error": "the log has the reason under the request id",
    "draining": "the server stops: send it to another one",
    "not_ready": f"{_RETRY}; `/readyz` and the log say what it waits for",
    "prompt_unavailable": "`GET /admin/tasks/TASK` says why under `problem`; often the store is away",
    "request_timeout": f"{_RETRY}; the server is too busy, or `request_timeout` too short",
    "revision_not_reached": f"{_RETRY}; this server lags behind the store: see `/readyz`",
    "store_unavailable": f"{_RETRY}; `promptmux doctor --store URL` says what is wrong. Reads go on meanwhile",
    "unavailable": _RETRY,
}

INDEX_TEXT = """
New here: [the README](../README.md), five minutes. How it is built: [ARCHITECTURE.md](../ARCHITECTURE.md). This list is
written by `python scripts/reference.py`; `tests/docs` runs every command in these pages that is not marked `not-run`.
"""

INDEX: Sequence[tuple[str, str, str]] = (
    ("Guides: how to do it", "guides", ""),
    (
        "Methods: what is learned, and from which paper",
        "methods",
        "Which one to take: [the methods](methods/README.md).",
    ),
    ("Runbooks: what to do when an alert fires", "runbooks", ""),
    ("Reference: what there is", "reference", "Written, or checked, from the code."),
    ("Operating and judging it", ".", ""),
    ("What was measured", "results", ""),
    ("Why it is built so", "decisions", ""),
)
