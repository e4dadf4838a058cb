import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from prompt_store import Target, version_of
from server.app import Apps, create_apps
from server.auth import Keyring
from server.metrics import Metrics
from server.settings import Settings
from tests.server.fakes import FakeBackbone, prompt_bytes


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


@dataclass
class Running:
    """A started server without sockets: both apps behind httpx clients."""

    apps: Apps
    public: httpx.AsyncClient
    admin: httpx.AsyncClient
    backbone: FakeBackbone

    async def publish(self, data: bytes, task_id: str = "sentiment", alias: str = "current") -> str:
        """As another process would: straight into the store."""
        store, version = self.apps.service.store, version_of(data)
        await store.publish(data)
        await store.set_alias(task_id, alias, [Target(version)], expected_revision=None)
        return version

    async def classify(self, text: object = "some words", task_id: str = "sentiment", **more: Any) -> Any:
        return await self.public.post("/classify", json={"task_id": task_id, "input": text, **more})

    def counted(self, name: str, **labels: str) -> float:
        service = self.apps.service
        return service.sync._metrics.registry.get_sample_value(f"promptmux_{name}", labels) or 0.0


Start = Callable[..., Any]
Eventually = Callable[[Callable[[], Awaitable[bool] | bool]], Awaitable[None]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    @asynccontextmanager
    async def started(
        *,
        backbone: FakeBackbone | None = None,
        keyring: Keyring | None = None,
        task: bool = True,
        **settings: Any,
    ) -> AsyncIterator[Running]:
        backbone = backbone or FakeBackbone()
        chosen = Settings(store=f"file://{tmp_path / 'store'}", **settings)
        apps = create_apps(chosen, keyring or Keyring(), load_backbone=lambda: backbone)
        clients = [
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
            for app in (apps.public, apps.admin)
        ]
        running = Running(apps, *clients, backbone)
        if task:
            await running.publish(prompt_bytes())
        await apps.service.start()
        try:
            yield running
        finally:
            for client in clients:
                await client.aclose()
            await apps.service.stop()

    return started


@pytest.fixture
def eventually() -> Eventually:
    """Wait until something holds; fails after a time that no healthy machine needs."""

    async def wait(holds: Callable[[], Awaitable[bool] | bool]) -> None:
        async with asyncio.timeout(120):
            while True:
                result = holds()
                if isinstance(result, bool) and result:
                    return
                if not isinstance(result, bool) and await result:
                    return
                await asyncio.sleep(0.01)

    return wait
