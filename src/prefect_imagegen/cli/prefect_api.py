"""Prefect's settings, log and server, before and around a flow that the command line runs.

Whether an API is configured is found where Prefect looks, without importing Prefect, which takes seconds. The places
and their order are those of `prefect.settings.sources` in Prefect 3.8 and 3.9: the environment, `.env`,
`prefect.toml`, `[tool.prefect]` in `pyproject.toml`, and the active profile.
"""

import logging
import os
import signal
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.redact import redact

_NAME = "PREFECT_API_URL"
_TEST_MODES = (
    *("PREFECT_TEST_MODE", "PREFECT_UNIT_TEST_MODE"),
    *("PREFECT_TESTING_UNIT_TEST_MODE", "PREFECT_TESTING_TEST_MODE"),
)
_SETTINGS_FILES = {"prefect.toml": (), "pyproject.toml": ("tool", "prefect")}
_PREFECT_DEFAULTS = {
    # The terminal has the progress bar; the server gets all logs.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    # The ephemeral server migrates its database at its first start, which outlasts the default of 20 s.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # Its telemetry fights the migration for SQLite's lock, and loses with a traceback.
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


def configured_api() -> str | None:
    """The URL of the Prefect API that is configured here; None if there is none.

    Raises RefusedError for a settings file that Prefect could not read either.
    """
    dotenv = _dotenv()
    tables = [_table(path, header) for path, header in _SETTINGS_FILES.items()]
    named = (_named(os.environ), _named(dotenv), *(_inner(table, "api", "url") for table in tables))
    url = next((value for value in named if value is not None), None)
    if url is None:
        url = _profile(_profiles_path(dotenv, tables)).get(_NAME)
    return str(url) if url else None


def quiet_prefect() -> None:
    """Before Prefect is imported: keep its logs off the terminal, unless the environment says otherwise."""
    # At the end it warns of the last event that is just being sent.
    logging.getLogger("EventsWorker").setLevel(logging.ERROR)
    for name, value in _PREFECT_DEFAULTS.items():
        os.environ.setdefault(name, value)


def reach_prefect() -> None:
    """Reach Prefect's API; where it needs an ephemeral server, that is started deaf to Ctrl-C. Raises RefusedError.

    A terminal sends SIGINT to the whole group of processes: the server would die first, and the flow that is being
    stopped in good order would wait for it for ever. A child inherits the signals that its parent blocks.
    """
    from prefect import get_client

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with get_client(sync_client=True) as client:
            failure = client.api_healthcheck()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if failure is not None:
        api = redact(configured_api() or "of its own server")
        raise RefusedError(
            "prefect_unreachable",
            f"Prefect's API {api} cannot be reached: {failure}.",
            remedy="Start its server or correct PREFECT_API_URL, or run without Prefect: --prefect off.",
        )


def use_own_prefect(home: str) -> None:
    """Give this process an ephemeral Prefect server of its own in a folder, whatever the user's profile says."""
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        del os.environ[name]
    os.environ |= {"PREFECT_HOME": home, "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true", "DO_NOT_TRACK": "1"}


def _named(variables: Mapping[str, str | None]) -> str | None:
    """The API among some variables; their names count in any case."""
    return next((value for name, value in variables.items() if name.upper() == _NAME and value is not None), None)


def _dotenv() -> Mapping[str, str | None]:
    if not Path(".env").is_file():
        return {}
    from dotenv import dotenv_values

    return dotenv_values(".env")


def _table(path: str, header: tuple[str, ...]) -> Mapping[str, Any]:
    """Prefect's settings in a file of the working directory."""
    if not Path(path).is_file():
        return {}
    try:
        content: Any = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RefusedError(
            "prefect_settings",
            f"Prefect reads its settings from {path}, which is no valid TOML: {error}.",
            remedy="Correct the file, or run without Prefect: --prefect off.",
        ) from error
    return _inner(content, *header) or {}


def _inner(table: Any, *names: str) -> Any:
    """A value of nested tables; None where it is not there."""
    for name in names:
        table = table.get(name) if isinstance(table, Mapping) else None
    return table


def _profiles_path(dotenv: Mapping[str, str | None], tables: list[Mapping[str, Any]]) -> Path | None:
    """Where the user's profiles are; None where Prefect falls back on its own, which name no API."""
    if any(os.environ.get(name) for name in _TEST_MODES):
        return None
    named = [os.environ.get("PREFECT_PROFILES_PATH"), dotenv.get("PREFECT_PROFILES_PATH")]
    named += [table.get("profiles_path") for table in tables]
    path = next(filter(None, named), None)
    home = os.environ.get("PREFECT_HOME") or Path.home() / ".prefect"
    return Path(path) if path else Path(home) / "profiles.toml"


def _profile(path: Path | None) -> Mapping[str, Any]:
    """The active profile; empty where there is none, or where Prefect takes its own."""
    if path is None or not path.exists():
        return {}
    try:
        profiles = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError:
        return {}  # Prefect warns, and goes on without
    active = os.environ.get("PREFECT_PROFILE") or profiles.get("active")
    return _inner(profiles, "profiles", active) or {} if active else {}
