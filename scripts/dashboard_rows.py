"""What the Grafana dashboard asks, row by row in the order of an operator's questions.

Owns: titles, expressions, units and thresholds. Must not know: Grafana's JSON (`grafana`), any file (`dashboard`).
"""

from __future__ import annotations

from typing import Final

from scripts.grafana import BLUE, GREEN, ORANGE, RED, Panel, Target
from scripts.promql import CLASSIFY, ON, RATE, TASK, mean, quantile, rate, share_of

ONE: Final = "{{pod}} {{instance}}"  # a replica: Kubernetes gives it both names, compose the second alone
END_TO_END: Final = "promptmux_http_request_duration_seconds"
SHARES: Final = ((None, GREEN), (0.001, ORANGE), (0.01, RED))


def quantiles(name: str, labels: str = ON) -> list[Target]:
    """The three that people ask for."""
    return [Target(quantile(share, name, labels), f"p{share * 100:.0f}") for share in (0.5, 0.95, 0.99)]


UP: Final = [
    Panel(
        "Replicas ready", "Those whose /readyz answers 200.",
        [Target(f"sum(promptmux_ready{{{ON}}})", "ready")],
        kind="stat", width=4, height=4, steps=((None, RED), (1, GREEN)),
    ),
    Panel(
        "Replicas scraped", "Those that Prometheus reaches. More than are ready: some start, or go.",
        [Target(f"count(promptmux_ready{{{ON}}})", "scraped")],
        kind="stat", width=4, height=4, steps=((None, RED), (1, BLUE)),
    ),
    Panel(
        "Requests", "Answered requests to /classify.",
        [Target(rate("promptmux_http_requests_total", CLASSIFY), "requests")],
        "reqps", kind="stat", width=4, height=4, steps=((None, BLUE),),
    ),
    Panel(
        "Server errors", "Share of /classify answered 5xx.",
        [Target(share_of("5.."), "5xx")], "percentunit", kind="stat", width=4, height=4, steps=SHARES,
    ),
    Panel(
        "Turned away", "Share of /classify answered 429: the queue was full.",
        [Target(share_of("429"), "429")], "percentunit", kind="stat", width=4, height=4, steps=SHARES,
    ),
    Panel(
        "Alerts firing", "Each has a page in docs/runbooks.",
        [Target('count(ALERTS{alertname=~"Promptmux.*",alertstate="firing"}) or vector(0)', "firing")],
        kind="stat", width=4, height=4, steps=((None, GREEN), (1, RED)),
    ),
    Panel(
        "Ready, by replica", "A gap: not scraped.",
        [Target(f"promptmux_ready{{{ON}}}", ONE)], kind="state-timeline", high=1,
        steps=((None, RED), (1, GREEN)), words={"0": ("not ready", RED), "1": ("ready", GREEN)},
    ),
    Panel(
        "Errors by code", "The stable `code` of each answered error, of every route.",
        [Target(rate("promptmux_http_errors_total", by="code, route"), "{{code}} {{route}}")], "reqps",
        stacked=True,
    ),
    Panel(
        "What runs", "Replicas of one service should agree in all columns but the first two.",
        [Target(f"promptmux_build_info{{{ON}}}", ONE, instant=True)], kind="table",
        hidden=("__name__", "job", "namespace", "service", "endpoint", "container"),
    ),
]  # fmt: skip
FAST: Final = [
    Panel(
        "Throughput", "Requests to /classify, and texts (rows) answered.",
        [
            Target(rate("promptmux_http_requests_total", CLASSIFY), "requests"),
            Target(rate("promptmux_rows_total"), "texts"),
        ], "ops",
    ),
    Panel(
        "End to end", "From a request's head to the last byte of its answer; the line is the alert's.",
        quantiles(END_TO_END, CLASSIFY), "s", steps=((None, GREEN), (1, RED)),
    ),
    Panel(
        "Where the time goes", "Means: tokenising and queue of a request, forward of a batch.",
        [
            Target(mean("promptmux_tokenize_seconds"), "tokenise"),
            Target(mean("promptmux_queue_wait_seconds"), "queue"),
            Target(mean("promptmux_forward_seconds"), "forward"),
        ], "s", stacked=True,
    ),
    Panel("Queue wait", "From the queue to the device.", quantiles("promptmux_queue_wait_seconds"), "s"),
    Panel("Forward", "One batch on the device.", quantiles("promptmux_forward_seconds"), "s"),
    Panel(
        "Queue, by replica", "Rows accepted and not answered; the autoscaler follows it.",
        [Target(f"promptmux_queue_rows{{{ON}}}", ONE)], stacked=True,
    ),
    Panel(
        "Rows in a batch", "Few rows under load: batches are cut by tokens, or lanes are idle.",
        [Target(mean("promptmux_batch_rows"), "mean"), *quantiles("promptmux_batch_rows")[1:2]],
    ),
    Panel(
        "Tokens in a batch", "Virtual ones included. At max_batch_tokens the device has all it may have.",
        [Target(mean("promptmux_batch_tokens"), "mean"), *quantiles("promptmux_batch_tokens")[1:2]],
    ),
    Panel(
        "Distinct tasks in a batch", "How mixed batches are.",
        [Target(mean("promptmux_batch_tasks"), "mean"), *quantiles("promptmux_batch_tasks")[1:2]],
    ),
]  # fmt: skip
WHO: Final = [
    Panel(
        "Requests by task", "Tasks in metrics_tasks (PROMPTMUX_METRICS_TASKS; none as shipped), all others as _other.",
        [Target(rate("promptmux_task_requests_total", TASK, "task"), "{{task}}")], "reqps", stacked=True,
    ),
    Panel(
        "Requests by version", "Of split tasks and those in metrics_tasks; a canary's share.",
        [Target(rate("promptmux_version_requests_total", TASK, "task, version"), "{{task}} {{version}}")],
        "reqps", stacked=True,
    ),
    Panel(
        "Errors by version", "What counts against a version is in docs/canary.md.",
        [Target(rate("promptmux_version_errors_total", TASK, "task, version, code"),
                "{{task}} {{version}} {{code}}")], "reqps",
    ),
    Panel(
        "Mean winning score by version", "A version that is much less sure than before sees other data.",
        [Target(
            f"{rate('promptmux_version_score_sum', TASK, 'task, version')}"
            f" / {rate('promptmux_version_score_count', TASK, 'task, version')}",
            "{{task}} {{version}}",
        )], "percentunit", high=1,
    ),
    Panel(
        "Callers", "Requests being worked on, and callers that hung up before their answer.",
        [
            Target(f"sum(promptmux_http_in_flight_requests{{{ON}}})", "in flight"),
            Target(rate("promptmux_clients_gone_total"), "gone per second"),
        ],
    ),
    Panel(
        "Turned away, by reason", "rows: max_queue_rows; tokens: max_queue_tokens.",
        [Target(rate("promptmux_rejected_requests_total", by="reason"), "{{reason}}")], "reqps",
    ),
]  # fmt: skip
LIVE: Final = [
    Panel(
        "Live versions", "Which version each alias leads to on each replica, quarantine included.",
        [Target(f"promptmux_task_version_info{{{TASK}}}", ONE, instant=True)], kind="table", width=14, height=9,
        hidden=("__name__", "job", "namespace", "service", "endpoint", "container"),
    ),
    Panel(
        "Replicas per live version", "Two lines of one alias: a split, or replicas that disagree.",
        [Target(
            f"count by (task, alias, version) (promptmux_task_version_info{{{TASK}}})",
            "{{task}}@{{alias}} {{version}}",
        )], width=10, height=9,
    ),
]  # fmt: skip
CHANGED: Final = [
    Panel(
        "Slow since", "p99 and median; the vertical lines are publishes, new versions, rollbacks, refusals, starts.",
        [Target(quantile(0.99, END_TO_END, CLASSIFY), "p99"), Target(quantile(0.5, END_TO_END, CLASSIFY), "p50")],
        "s", width=16,
    ),
    Panel(
        "Changes of the store", "Taken in by a replica; each publish and each move of an alias is one.",
        [Target(f"changes(promptmux_store_revision{{{ON}}}{RATE})", ONE)],
    ),
    Panel(
        "Taken out of service", "Versions that a replica stopped using, aliases that it moved back, by error code.",
        [
            Target(f"sum by (code) (increase(promptmux_quarantined_versions_total{{{ON}}}{RATE}))",
                   "quarantined {{code}}"),
            Target(f"sum by (code) (increase(promptmux_auto_rollbacks_total{{{ON}}}{RATE}))",
                   "rolled back {{code}}"),
        ],
    ),
    Panel(
        "Not served as the store says", "Tasks with an alias that a replica refused to follow.",
        [Target(f"promptmux_catalogue_troubled_tasks{{{ON}}}", ONE)], steps=((None, GREEN), (1, RED)),
    ),
    Panel(
        "Loads", "Prompts copied to the device; many of them with evictions: the tier is too small.",
        [
            Target(rate("promptmux_prompt_loads_total", by="result"), "{{result}}"),
            Target(rate("promptmux_tier_evictions_total", f'{ON},tier="device"'), "evicted"),
        ], "ops",
    ),
]  # fmt: skip
TIERS: Final = [
    Panel(
        "Hit share by tier", "Looks into the tier that found the prompt there.",
        [Target(
            f"{rate('promptmux_tier_hits_total', by='tier')} / ({rate('promptmux_tier_hits_total', by='tier')}"
            f" + {rate('promptmux_tier_misses_total', by='tier')})",
            "{{tier}}",
        )], "percentunit", high=1,
    ),
    Panel(
        "Fullness by tier", "Of what each may hold, the fullest replica.",
        [Target(f"max by (tier) (promptmux_tier_bytes{{{ON}}} / (promptmux_tier_capacity_bytes{{{ON}}} > 0))",
                "{{tier}}")], "percentunit", high=1,
    ),
    Panel(
        "Bytes by tier", "Over all chosen replicas.",
        [Target(f"sum by (tier) (promptmux_tier_bytes{{{ON}}})", "{{tier}}")], "bytes",
    ),
    Panel(
        "Prompts by tier", "Over all chosen replicas.",
        [Target(f"sum by (tier) (promptmux_tier_entries{{{ON}}})", "{{tier}}")],
    ),
    Panel(
        "Evictions by tier", "Dropped to make room.",
        [Target(rate("promptmux_tier_evictions_total", by="tier"), "{{tier}}")], "ops",
    ),
    Panel("Load time", "From the store to the device.", quantiles("promptmux_prompt_load_seconds"), "s"),
    Panel(
        "Damaged copies and failing disks", "Both should be nothing.",
        [
            Target(f"sum by (tier) (increase(promptmux_tier_corrupt_total{{{ON}}}{RATE}))", "corrupt {{tier}}"),
            Target(f"sum by (tier) (increase(promptmux_tier_errors_total{{{ON}}}{RATE}))", "failed {{tier}}"),
            Target(f"sum(increase(promptmux_snapshot_failures_total{{{ON}}}{RATE}))", "snapshot not written"),
        ], steps=((None, GREEN), (1, RED)),
    ),
]  # fmt: skip
STORE: Final = [
    Panel(
        "Staleness", "Since a replica's catalogue was all that the store had: below 2 s in health.",
        [Target(f"promptmux_store_staleness_seconds{{{ON}}}", ONE)], "s", steps=((None, GREEN), (60, RED)),
    ),
    Panel(
        "Revision", "Lines that part: replicas that are behind.",
        [Target(f"promptmux_store_revision{{{ON}}}", ONE)], low=None,
    ),
    Panel(
        "Failures to follow", "By error code.",
        [
            Target(rate("promptmux_store_sync_failures_total", by="code"), "{{code}}"),
            Target(rate("promptmux_unreadable_tasks_total", by="code"), "unreadable task {{code}}"),
        ], "ops",
    ),
    Panel(
        "Tasks", "Served; of those, lost by the store with its history.",
        [
            Target(f"max(promptmux_catalogue_tasks{{{ON}}})", "served"),
            Target(f"max(promptmux_catalogue_missing_tasks{{{ON}}})", "missing in the store"),
        ],
    ),
    Panel(
        "Serving a snapshot", "1: started while the store was away, and it still is.",
        [Target(f"promptmux_serving_snapshot{{{ON}}}", ONE)], high=1,
    ),
    Panel(
        "History lost", "Times that the store came back with less than was known.",
        [Target(f"promptmux_store_history_lost_total{{{ON}}}", ONE)], steps=((None, GREEN), (1, RED)),
    ),
]  # fmt: skip
MACHINE: Final = [
    Panel(
        "Device memory", "GPUs only; prompts are a part of what is allocated, free is what no process has.",
        [
            Target(f"promptmux_device_memory_bytes{{{ON}}}", f"{{{{kind}}}} {ONE}"),
            Target(f'promptmux_tier_bytes{{{ON},tier="device"}}', f"prompts {ONE}"),
        ], "bytes",
    ),
    Panel(
        "Process memory", "Resident. On a CPU the model and the prompts are in it.",
        [Target(f"process_resident_memory_bytes{{{ON}}} and on (job, instance) promptmux_ready", ONE)], "bytes",
    ),
    Panel(
        "Processor", "Cores in use.",
        [Target(f"rate(process_cpu_seconds_total{{{ON}}}{RATE}) and on (job, instance) promptmux_ready", ONE)],
    ),
]  # fmt: skip
ROWS: Final = {
    "Is it up?": UP,
    "Is it fast?": FAST,
    "Who uses it?": WHO,
    "Which prompt version is live where?": LIVE,
    "What changed when it got slow?": CHANGED,
    "Where do prompts come from? (tiers)": TIERS,
    "Is the store there?": STORE,
    "Machine": MACHINE,
}
