"""What the tests of the tiers share."""

import asyncio

from prompt_store import UnknownVersion, version_of
from server.host_tier import HostTier
from server.metrics import Metrics
from server.prompt_tiers import PromptTiers

DATA = bytes(range(256)) * 4
VERSION = version_of(DATA)
LARGE = bytes(300_000)


class Store:
    """The one call of a store that the tiers make."""

    def __init__(self) -> None:
        self.has = {version_of(data): data for data in (DATA, LARGE)}
        self.gets = 0
        self.fails: Exception | None = None
        self.go = asyncio.Event()
        self.go.set()

    async def get(self, task_id: str, version: str) -> bytes:
        self.gets += 1
        await self.go.wait()
        if self.fails is not None:
            raise self.fails
        if version not in self.has:
            raise UnknownVersion("no such version")
        return self.has[version]


def decode(data: bytes) -> tuple[str, int]:
    return f"decoded {version_of(data)}", 10


def decoded(version: str) -> str:
    return f"decoded {version}"


def bytes_in(host: HostTier[str], version: str) -> bytes | None:
    held = host.get(version)
    return None if held is None else held.data


async def written(tiers: PromptTiers[str]) -> None:
    await asyncio.gather(*tiers._writes)


def counted(metrics: Metrics, what: str, tier: str) -> float:
    return metrics.registry.get_sample_value(f"promptmux_tier_{what}_total", {"tier": tier}) or 0.0
