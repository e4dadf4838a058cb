"""One server process: sockets, signals, the two HTTP servers, the exit code.

Owns: how the process starts and ends. Must not know: what the apps do.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import structlog
import uvicorn
import uvloop
from starlette.types import ASGIApp

from prompt_store import PromptStoreError
from server.app import Apps, create_apps
from server.auth import Keyring, is_loopback, parse_keys
from server.logs import configure_logs
from server.protocol import BoundedHttpProtocol
from server.service import BackboneUnusable
from server.settings import Settings, SettingsError, unknown_variables

if TYPE_CHECKING:
    from backbone import Backbone

EXIT_USAGE: Final = 2
EXIT_FAILED: Final = 1
# How long a thread may keep the interpreter to itself. A lane wants it for microseconds at a time, at the ends of a
# forward and once a layer; with Python's own 5 ms it could wait as long as a short text's forward takes while the event
# loop works through a burst. In measurements the difference was hardly larger than the noise.
_SWITCH_SECONDS: Final = 0.0005


def serve(settings: Settings, *, load_backbone: Callable[[], Backbone] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; the exit code: 0 drained, 1 not, 2 for settings that cannot be used.

    `load_backbone` replaces the loading of the backbone that the settings name.
    """
    configure_logs(settings.log_level, settings.log_format)
    log = structlog.get_logger("promptmux")
    log.info("settings", **settings.effective())
    unknown = unknown_variables(os.environ)
    if unknown:
        # Not refused: a Kubernetes service named promptmux puts variables of this form into every pod.
        log.warning("unknown_variables", names=unknown)
    try:
        keyring = _keyring(settings)
        with _listening(settings) as sockets, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(settings, keyring, sockets, load_backbone))
    except (SettingsError, PromptStoreError) as error:
        print(f"promptmux serve: {error}", file=sys.stderr)
        return EXIT_USAGE
    except BackboneUnusable as error:
        print(f"promptmux serve: backbone {settings.backbone}: {error}", file=sys.stderr)
        return EXIT_USAGE


def _keyring(settings: Settings) -> Keyring:
    try:
        keyring = Keyring(parse_keys(settings.key_lines()))
    except ValueError as error:
        raise SettingsError(str(error)) from None
    for name, host in (("host", settings.host), ("admin_host", settings.admin_host)):
        if not len(keyring) and not is_loopback(host):
            raise SettingsError(
                f"{name} {host} is reachable from other machines: give api_keys first, or listen on 127.0.0.1"
            )
    return keyring


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both sockets, bound before anything slow begins: a taken port is known at once."""
    with contextlib.ExitStack() as stack:
        yield (
            stack.enter_context(_bind(settings.host, settings.port, "port")),
            stack.enter_context(_bind(settings.admin_host, settings.admin_port, "admin_port")),
        )


def _bind(host: str, port: int, name: str) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, proto)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another {name}"
        ) from None
    return bound


async def _serve(
    settings: Settings,
    keyring: Keyring,
    sockets: tuple[socket.socket, socket.socket],
    load_backbone: Callable[[], Backbone] | None,
) -> int:
    log = structlog.get_logger("promptmux")
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    sys.setswitchinterval(_SWITCH_SECONDS)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    apps = create_apps(settings, keyring, load_backbone=load_backbone)
    servers = [_HttpServer(app) for app in (apps.public, apps.admin)]
    serving = [
        asyncio.create_task(server.serve([bound])) for server, bound in zip(servers, sockets, strict=True)
    ]
    starting = asyncio.create_task(apps.service.start())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            _greet(log, apps, sockets, keyring)
            await asyncio.wait({stopping, *serving}, return_when=asyncio.FIRST_COMPLETED)
        else:
            starting.cancel()
        log.info("stopping")
        await apps.service.leave(settings.leave_delay, hurry)
        drained = await apps.service.drain(settings.drain_timeout, hurry)
    finally:
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*serving, return_exceptions=True)
        stopping.cancel()
        await apps.service.stop()
        gc.unfreeze()
    log.info("stopped", drained=drained)
    return 0 if drained else EXIT_FAILED


class _HttpServer(uvicorn.Server):
    """uvicorn without its own signals: this process drains before it closes."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="none",
                http=BoundedHttpProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=2048,
                timeout_keep_alive=75,  # longer than a load balancer's 60 s: the one that sends should close
                timeout_graceful_shutdown=2,  # all was answered before; this is for callers that do not read
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


def _greet(log: Any, apps: Apps, sockets: tuple[socket.socket, socket.socket], keyring: Keyring) -> None:
    public, admin = (_url(bound) for bound in sockets)
    tasks = sorted(task.task_id for task in apps.service.catalogue)
    log.info("ready", url=public, admin_url=admin, tasks=len(tasks))
    shown = ", ".join(tasks[:8]) + (", …" if len(tasks) > 8 else "") if tasks else "none yet"
    bearer = "" if not len(keyring) else " -H 'Authorization: Bearer <key>'"
    print(
        f"\npromptmux serves {len(tasks)} task{'' if len(tasks) == 1 else 's'} ({shown})\n"
        f"  public  {public}  (documentation: {public}/docs)\n  admin   {admin}\n"
        f"  curl -s {public}/classify{bearer} -H 'Content-Type: application/json' \\\n"
        f"    -d {shlex.quote(_example(apps, tasks))}\n",
        flush=True,
    )


def _example(apps: Apps, tasks: list[str]) -> str:
    """A body to try out: a task's own golden example where one is at hand."""
    for task_id in tasks:
        task = apps.service.catalogue.get(task_id)
        slot = apps.service.cache.peek(task.current()) if task else None
        if slot and slot.manifest.golden and not slot.takes_pair:
            example = {"task_id": task_id, "input": slot.manifest.golden[0].text}
            return json.dumps(example, ensure_ascii=False)
    return json.dumps({"task_id": tasks[0] if tasks else "my-task", "input": "What a charming film!"})


def _url(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{'127.0.0.1' if shown == '0.0.0.0' else shown}:{port}"
