"""Who sells the images of a world: how its service is made, and what the runs are told of it."""

from collections.abc import Callable
from dataclasses import dataclass

from prefect_imagegen.providers.settings import ProviderSettings

from ..scenarios.scenario import Scenario
from .api import Plan, Service
from .loop import Time
from .session import Options, segmind_settings
from .wire import Request

MODEL = "flux-2-klein-9b"
Fate = Callable[[Request], Plan]
"""What becomes of a POST that has arrived."""


@dataclass(frozen=True, slots=True)
class Seller:
    """A seller of images. `settings`: what a run with an API key is told of it."""

    model: str
    key_scope: str | None
    serve: Callable[[Time, Scenario, Fate], Service]
    settings: Callable[[Options, str], ProviderSettings]


def _serve(true: Time, scenario: Scenario, fate: Fate) -> Service:
    return Service(true, scenario.traits, dict(scenario.keys), fate, scenario.options.v1)


SEGMIND = Seller(MODEL, None, _serve, segmind_settings)
