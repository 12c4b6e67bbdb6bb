"""Plays scenarios at the queue API, with the provider that docs/extend/provider.md has."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import CodeType, ModuleType
from unittest.mock import patch

from pydantic import SecretStr

from prefect_imagegen.providers import registry
from prefect_imagegen.providers.settings import ProviderSettings
from tests.support.queue_provider.added import NAME, PAGE, block

from ..runner import Game, play
from ..scenarios.scenario import Scenario
from ..world.loop import Time
from ..world.seller import Fate, Seller
from ..world.session import Options
from ..world.world import World
from .generator import draw
from .judge import judge
from .service import MODEL, QueueService

POLL_S = 4.0
"""Rarer polls are the same polls."""


@cache
def page_source() -> str:
    """The source of the provider, as the page has it."""
    return block("python")


@cache
def _compiled(source: str) -> CodeType:
    return compile(source, str(PAGE), "exec")


@contextmanager
def installed(source: str | None = None) -> Iterator[ModuleType]:
    """Within: the provider is one of those that are known. `source`: of the module, in place of the page's."""
    module = ModuleType("queue_images")
    exec(_compiled(source or page_source()), module.__dict__)
    module.POLL_S = POLL_S
    with patch.object(registry, "PROVIDERS", {**registry.PROVIDERS, NAME: module.ENTRY}):
        yield module


def _serve(true: Time, scenario: Scenario, fate: Fate) -> QueueService:
    return QueueService(true, scenario.traits, dict(scenario.keys), fate, v1=False)


def _settings(options: Options, api_key: str) -> ProviderSettings:
    return ProviderSettings(
        NAME, api_key=SecretStr(api_key), requests_per_minute=3000.0, max_in_flight=options.in_flight
    )


def play_at_queue(scenario: Scenario, source: str | None = None) -> World:
    """Play a scenario at the queue API."""
    with installed(source) as module:
        seller = Seller(MODEL, module.ABILITIES.key_scope, _serve, _settings)
        return play(scenario, seller)


AT_QUEUE = Game(draw, play_at_queue, judge)
