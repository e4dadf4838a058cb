"""For each alert: series with which it fires, and series like them with which it must not. A value for each minute.

`a` and `b` are replicas. `0x60` is 0 for an hour, `0+1x60` counts one a minute, `_` is no sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


def of(name: str, replica: str = "a", **labels: str) -> str:
    """A series as a scrape has it."""
    all_labels = {"job": "promptmux", "instance": replica, **labels}
    return name + "{" + ",".join(f'{label}="{value}"' for label, value in all_labels.items()) + "}"


def asked(**by_status: str) -> dict[str, str]:
    """Requests to /classify by status: s200="0+100x60"."""
    return {
        of(
            "promptmux_http_requests_total", app="public", route="/classify", status=status.removeprefix("s")
        ): values
        for status, values in by_status.items()
    }


@dataclass(frozen=True)
class Case:
    """`minute` is when it is looked at; `fires` how many alerts there are to be."""

    alert: str
    series: dict[str, str]
    minute: int
    fires: int


READY, UP = of("promptmux_ready"), of("up")
STALE = of("promptmux_store_staleness_seconds")
BUCKETS: Final = ("0.5", "1.0", "2.5", "+Inf")


def durations(*counts: str, route: str = "/classify") -> dict[str, str]:
    """Requests of at most 0.5, 1 and 2.5 seconds, and all."""
    name = "promptmux_http_request_duration_seconds_bucket"
    return {of(name, route=route, le=bound): values for bound, values in zip(BUCKETS, counts, strict=True)}


def tier(what: str, name: str, values: str) -> dict[str, str]:
    """A counter of a tier."""
    return {of(f"promptmux_tier_{what}_total", tier=name): values}


def device(free: str) -> dict[str, str]:
    """A GPU of 100, of which our tensors have 20: what else is taken another process has, or torch keeps."""
    name = "promptmux_device_memory_bytes"
    return {
        of(name, kind="allocated"): "20x60",
        of(name, kind="free"): free,
        of(name, kind="total"): "100x60",
    }


def fleets(**ready: str) -> dict[str, str]:
    """Fleets of one replica, each in a namespace of its own."""
    return {of("promptmux_ready", f"of-{name}", namespace=name): values for name, values in ready.items()}


def build(replica: str, fingerprint: str, values: str) -> dict[str, str]:
    """What a replica runs."""
    labels = {
        "version": "1",
        "backbone": "m",
        "fingerprint": fingerprint,
        "device": "cpu",
        "dtype": "float32",
    }
    return {of("promptmux_build_info", replica, **labels): values}


CASES: Final = [
    Case("PromptmuxNoReplicaReady", {READY: "0x60", of("promptmux_ready", "b"): "0x60"}, 10, 1),
    Case("PromptmuxNoReplicaReady", {UP: "0x60"}, 10, 1),  # none can be scraped
    Case("PromptmuxNoReplicaReady", {READY: "0x60", of("promptmux_ready", "b"): "1x60"}, 10, 0),
    Case("PromptmuxNoReplicaReady", {READY: "1x9 0 1x50"}, 11, 0),  # for a moment
    Case("PromptmuxNoReplicaReady", fleets(staging="1x500", production="1x20 stale"), 30, 1),
    Case("PromptmuxNoReplicaReady", fleets(staging="1x500", production="1x20 stale"), 300, 1),  # it stays
    Case("PromptmuxNoReplicaReady", fleets(staging="1x500", production="0x500"), 30, 1),
    Case("PromptmuxNoReplicaReady", fleets(staging="1x20 stale", production="1x20 stale"), 30, 2),
    Case("PromptmuxNoReplicaReady", {READY: "1x20 stale"}, 500, 1),  # by then nobody knows its name
    Case(  # a rollout: b takes a's place
        "PromptmuxNoReplicaReady", {READY: "1x20 stale", of("promptmux_ready", "b"): "_x19 1x480"}, 30, 0
    ),
    Case("PromptmuxReplicaDown", {UP: "0x60", of("up", "b"): "1x60"}, 10, 1),
    Case("PromptmuxReplicaDown", {UP: "1x60", 'up{job="other",instance="c"}': "0x60"}, 10, 0),
    Case("PromptmuxReplicaDown", {UP: "1x60", of("up", "b"): "1x30 stale"}, 45, 1),  # it has left the DNS
    Case(  # made anew: for two minutes both addresses are known
        "PromptmuxReplicaDown", {UP: "1x60", of("up", "b"): "1x30 stale", of("up", "c"): "_x29 1x60"}, 45, 0
    ),
    Case("PromptmuxReplicaDown", {UP: "1x60", of("up", "b"): "_x30 1x30"}, 45, 0),  # one more
    Case(  # in Kubernetes an autoscaler takes pods away
        "PromptmuxReplicaDown",
        {of("up", namespace="n"): "1x60", of("up", "b", namespace="n"): "1x30 stale"}, 45, 0,
    ),
    Case("PromptmuxReplicaNotReady", {READY: "0x60", of("promptmux_ready", "b"): "1x60"}, 20, 1),
    Case("PromptmuxReplicaNotReady", {READY: "0x60"}, 10, 0),  # it may still be starting
    Case(
        "PromptmuxRestarting", {of("process_start_time_seconds"): "0x5 300x5 600x5 900x50"}, 25, 1
    ),
    Case("PromptmuxRestarting", {of("process_start_time_seconds"): "0x5 300x5 600x50"}, 25, 0),
    Case("PromptmuxBackgroundPartDied", {of("promptmux_background_failures_total", part="sync"): "_x5 1x50"}, 10, 1),
    Case("PromptmuxBackgroundPartDied", {READY: "1x60"}, 10, 0),
    Case("PromptmuxMixedReplicas", build("a", "f1", "1x60") | build("b", "f2", "1x60"), 45, 1),
    Case("PromptmuxMixedReplicas", build("a", "f1", "1x60") | build("b", "f1", "1x60"), 45, 0),
    Case(  # a rollout: a is replaced
        "PromptmuxMixedReplicas", build("a", "f1", "1x20 stale") | build("b", "f2", "_x10 1x50"), 45, 0
    ),
    Case("PromptmuxErrors", asked(s200="0+100x60", s503="0+2x60"), 20, 1),
    Case("PromptmuxErrors", asked(s200="0+1000x60", s503="0+2x60"), 20, 0),
    Case("PromptmuxErrors", asked(s200="0+100x60", s404="0+50x60", s429="0+50x60"), 20, 0),  # callers' own
    Case("PromptmuxErrors", asked(s200="0+100x60", s503="0x10 20x50"), 14, 0),  # a burst that is over
    Case("PromptmuxOverloaded", asked(s200="0+100x60", s429="0+2x60"), 20, 1),
    Case("PromptmuxOverloaded", asked(s200="0+1000x60", s429="0+2x60"), 20, 0),
    Case("PromptmuxSlow", durations("0+90x60", "0+95x60", "0+100x60", "0+100x60"), 30, 1),
    Case("PromptmuxSlow", durations("0+90x60", "0+100x60", "0+100x60", "0+100x60"), 30, 0),
    Case(  # only /classify counts
        "PromptmuxSlow", durations("0+1x60", "0+2x60", "0+100x60", "0+100x60", route="/v1/models"), 30, 0
    ),
    Case("PromptmuxForwardFails", {of("promptmux_forward_failures_total"): "0x5 0+1x50"}, 30, 1),
    Case("PromptmuxForwardFails", {of("promptmux_forward_failures_total"): "0x5 3x50"}, 10, 0),
    Case(
        "PromptmuxVersionRolledBack",
        {of("promptmux_auto_rollbacks_total", code="numerical_error"): "0x5 1x50"}, 10, 1,
    ),
    Case(
        "PromptmuxVersionRolledBack",
        {of("promptmux_auto_rollbacks_total", code="numerical_error"): "0x5 1x50"}, 40, 0,
    ),
    Case("PromptmuxTasksNotFollowed", {of("promptmux_catalogue_troubled_tasks"): "0x5 2x50"}, 20, 1),
    Case("PromptmuxTasksNotFollowed", {of("promptmux_catalogue_troubled_tasks"): "0x5 2x2 0x50"}, 20, 0),
    Case("PromptmuxCopyCorrupt", tier("corrupt", "disk", "0x5 1x50"), 10, 1),
    Case("PromptmuxCopyCorrupt", tier("corrupt", "disk", "0x60"), 10, 0),
    Case(
        "PromptmuxDeviceTierTooSmall",
        tier("misses", "device", "0+30x60") | tier("hits", "device", "0+70x60")
        | tier("evictions", "device", "0+30x60"), 50, 1,
    ),
    Case(  # misses without evictions: it fills up after a start
        "PromptmuxDeviceTierTooSmall",
        tier("misses", "device", "0+30x60") | tier("hits", "device", "0+70x60")
        | tier("evictions", "device", "0x60"), 50, 0,
    ),
    Case(
        "PromptmuxDeviceTierTooSmall",
        tier("misses", "device", "0+1x60") | tier("hits", "device", "0+99x60")
        | tier("evictions", "device", "0+1x60"), 50, 0,
    ),
    Case("PromptmuxLocalDiskFails", tier("errors", "disk", "0x5 0+1x50"), 20, 1),
    Case("PromptmuxLocalDiskFails", {of("promptmux_snapshot_failures_total"): "0x5 0+1x50"}, 20, 1),
    Case("PromptmuxLocalDiskFails", tier("errors", "disk", "0x5 1x55"), 40, 0),
    Case("PromptmuxDeviceMemoryFull", device("3x60"), 20, 1),
    Case("PromptmuxDeviceMemoryFull", device("20x60"), 20, 0),
    Case("PromptmuxStoreStale", {STALE: "0x5 60+60x50", READY: "1x60"}, 20, 1),
    Case("PromptmuxStoreStale", {STALE: "0+60x60", READY: "0x60"}, 20, 0),  # it starts
    Case("PromptmuxStoreStale", {STALE: "1x60", READY: "1x60"}, 20, 0),
    Case("PromptmuxStoreHistoryLost", {of("promptmux_store_history_lost_total"): "0x5 1x50"}, 10, 1),
    Case("PromptmuxStoreHistoryLost", {of("promptmux_catalogue_missing_tasks"): "3x60"}, 10, 1),
    Case(
        "PromptmuxStoreHistoryLost",
        {of("promptmux_store_history_lost_total"): "0x60", of("promptmux_catalogue_missing_tasks"): "0x60"},
        10, 0,
    ),
]  # fmt: skip
