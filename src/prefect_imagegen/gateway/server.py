"""Serving the gateway on a socket: embedded in another process, or as a process of its own."""

import asyncio
import contextlib
import ipaddress
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Self

import uvicorn
from starlette.types import ASGIApp

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.redact import redact
from prefect_imagegen.gateway.app import create_app
from prefect_imagegen.gateway.engines import ENGINES
from prefect_imagegen.gateway.engines.diffusers import check_diffusers
from prefect_imagegen.gateway.http.intake import is_base_url
from prefect_imagegen.gateway.http.protocol import protocol_with
from prefect_imagegen.gateway.jobs.runner import JobRunner
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.gateway.state.account import AccountState

# Longer than a client keeps an idle connection, so that no POST meets one that is just being closed.
_KEEPALIVE_S = 75
_START_S = 30.0
_BACKLOG = 2048


class EmbeddedGateway:
    """A gateway in a thread of this process, on a free loopback port. Use `with`, or `start` and `stop`.

    `url` is its base URL. `account_state` has its records and counters; other threads only read it.
    """

    def __init__(self, settings: GatewaySettings | None = None) -> None:
        self._settings = settings or GatewaySettings(allow_loopback=True)
        self._exit = contextlib.ExitStack()
        self.account_state: AccountState
        self.url = ""

    def start(self) -> None:
        """Start serving; returns when it answers. Raises RuntimeError if it does not within 30 s."""
        folder = self._exit.enter_context(_folder(self._settings))
        self.account_state = AccountState(self._settings, folder)
        listener = _listen("127.0.0.1", 0)
        self._exit.callback(listener.close)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._runner = JobRunner(self.account_state)
        self._server = uvicorn.Server(_config(self._runner, create_app(self._runner), grace_s=0))
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._server.serve([listener])), name="gateway", daemon=True
        )
        ready = threading.Event()
        on_startup = self._server.startup

        async def startup(sockets: list[socket.socket] | None = None) -> None:
            await on_startup(sockets)
            ready.set()

        self._server.startup = startup  # type: ignore[method-assign] # uvicorn has no other hook for it
        self._thread.start()
        if not ready.wait(_START_S):
            raise RuntimeError("the embedded gateway did not start")

    def stop(self) -> None:
        """Stop serving and remove the temporary files."""
        self._server.should_exit = True
        self._thread.join(_START_S)
        self._exit.close()

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop."""
        self.stop()


def run_server(settings: GatewaySettings, host: str, port: int, on_listening: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; `on_listening` gets the URL. Port 0 takes a free one.

    Raises RefusedError for an open host without a key, a port in use, or an engine that cannot get ready.
    """
    check_settings(settings, host)
    if threading.current_thread() is threading.main_thread():
        # uvicorn stops on SIGTERM and then raises it once more: its default would end the process right there,
        # and leave the temporary files behind.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    failures: list[Exception] = []
    with _folder(settings) as folder, contextlib.closing(_listen(host, port)) as listener:
        runner = JobRunner(AccountState(settings, folder))

        def stop_with(error: Exception) -> None:
            failures.append(error)
            server.should_exit = True

        server = _Server(_config(runner, create_app(runner, stop_with), log_level="info"), runner)
        url_host = f"[{host}]" if ":" in host else host
        on_listening(f"http://{url_host}:{listener.getsockname()[1]}")
        server.run([listener])
    for error in failures:
        raise error


class _Server(uvicorn.Server):
    """A uvicorn server that finishes accepted work after a first signal; a second one stops it at once."""

    def __init__(self, config: uvicorn.Config, runner: JobRunner) -> None:
        super().__init__(config)
        self._runner = runner
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal; called in the main thread, while the event loop runs."""
        if self._draining is None:
            loop = asyncio.get_running_loop()
            self._draining = loop.create_task(self._drain(sig, frame))
            loop.call_soon_threadsafe(lambda: None)  # it may be waiting for the network
        else:
            super().handle_exit(sig, frame)

    async def _drain(self, sig: int, frame: FrameType | None) -> None:
        await self._runner.drain()
        super().handle_exit(sig, frame)


def check_settings(settings: GatewaySettings, host: str) -> None:
    """Raise RefusedError for settings that cannot be served, and for serving other machines without a key."""
    if settings.engine not in ENGINES:
        raise RefusedError(
            "engine_unknown", f"There is no engine {settings.engine!r}.", remedy=f"Use one of: {', '.join(ENGINES)}."
        )
    if settings.engine == "diffusers":
        check_diffusers(settings)
    keys = [key.get_secret_value() for keys in settings.accounts.values() for key in keys]
    keys += [settings.api_key.get_secret_value()] if settings.api_key else []
    if len(keys) > len(set(keys)):
        raise RefusedError(
            "shared_key", "Two accounts have the same key.", remedy="Give every --account keys of its own."
        )
    if settings.public_url is not None and not is_base_url(settings.public_url):
        raise RefusedError(
            "bad_option",
            f"--public-url {redact(settings.public_url)} is no base URL.",
            remedy="Give http(s)://HOST[:PORT][/PATH], without user, query or fragment.",
        )
    if not keys and not _is_loopback(host):
        raise RefusedError(
            "open_gateway",
            f"Serving on {host} without a key would let anybody in.",
            remedy="Set PREFECT_IMAGEGEN_API_KEY, or give --account, or serve on 127.0.0.1.",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _config(runner: JobRunner, app: ASGIApp, *, log_level: str = "critical", grace_s: int = 5) -> uvicorn.Config:
    settings = runner.account_state.settings
    return uvicorn.Config(
        app,
        http=protocol_with(settings.limits, settings.engine),
        h11_max_incomplete_event_size=settings.limits.head_bytes,
        proxy_headers=False,  # the gateway's address comes from --public-url, not from a caller's headers
        server_header=False,
        log_level=log_level,
        access_log=False,
        lifespan="on",
        timeout_keep_alive=_KEEPALIVE_S,
        timeout_graceful_shutdown=grace_s,
        ws="none",
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)  # from now on: early callers wait until the server runs, and are not refused
    except OSError as error:
        listener.close()
        raise RefusedError(
            "port_in_use", f"Port {port} on {host} cannot be used: {error}.", remedy="Choose another --port."
        ) from error
    return listener


@contextmanager
def _folder(settings: GatewaySettings) -> Iterator[Path]:
    """The folder of outputs and uploads: the one that is set, or a temporary one."""
    if settings.data_dir is not None:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        yield settings.data_dir
        return
    with tempfile.TemporaryDirectory(prefix="imagegen-gateway-") as name:
        yield Path(name)
