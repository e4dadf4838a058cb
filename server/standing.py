"""How a ready server stands: what `/readyz` shows of the store and of the tiers.

Owns: the form of that answer. Must not know: how any of it comes about.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from server.catalogue import Catalogue
from server.prompt_cache import PromptCache
from server.prompt_decoder import Checked
from server.prompt_tiers import PromptTiers
from server.view import Source, View


class StoreStanding(BaseModel):
    """Where the catalogue stands in the store's history."""

    epoch: str = Field(description="Another epoch: the store lost its history and began anew.")
    revision: int = Field(description="Changes of the store that the catalogue has taken in.")
    staleness_seconds: float = Field(description="Since the catalogue was all that the store had.")
    missing_tasks: int = Field(description="Served, though the store lost them with its history.")
    source: Source = Field(description="`snapshot`: the store is away, and this is the last that was known.")


class TierStanding(BaseModel):
    """What one tier holds."""

    bytes: int
    entries: int
    capacity_bytes: int


class Tiers(BaseModel):
    """From the fastest to the slowest; `disk` is null where none is kept."""

    device: TierStanding
    host: TierStanding
    disk: TierStanding | None


class Standing(BaseModel):
    """The answer of `/readyz`."""

    status: Literal["ready"] = "ready"
    store: StoreStanding
    tiers: Tiers


def describe(
    view: View, catalogue: Catalogue, cache: PromptCache, device_bytes: int, tiers: PromptTiers[Checked]
) -> Standing:
    """How the parts stand now."""
    revision = view.revision
    host, disk = tiers.host, tiers.disk
    return Standing(
        store=StoreStanding(
            epoch=revision.epoch if revision else "",
            revision=revision.number if revision else 0,
            staleness_seconds=round(view.staleness, 3),
            missing_tasks=len(catalogue.missing),
            source=view.source,
        ),
        tiers=Tiers(
            device=TierStanding(bytes=cache.nbytes, entries=len(cache), capacity_bytes=device_bytes),
            host=TierStanding(bytes=host.nbytes, entries=len(host), capacity_bytes=host.capacity_bytes),
            disk=None
            if disk is None
            else TierStanding(bytes=disk.nbytes, entries=len(disk), capacity_bytes=disk.capacity_bytes),
        ),
    )
