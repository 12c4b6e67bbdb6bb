"""The pace of polls, and the rates that are taken where nobody says one."""

import asyncio

import pytest

from prefect_imagegen.app.adapters import resolve_backend
from prefect_imagegen.app.options import GenerateOptions
from prefect_imagegen.app.settings import BackendSettings
from prefect_imagegen.io.polls import Polls

pytestmark = pytest.mark.anyio


class Gate:
    """A rate limiter that counts."""

    def __init__(self) -> None:
        self.acquired = 0
        self.pauses: list[float] = []

    async def acquire(self) -> None:
        self.acquired += 1

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)


async def test_polls_join_the_rate_gate_after_a_429() -> None:
    """Polls take no rate tokens until one of them is answered with 429; then all of them do, whichever row polls."""
    gate = Gate()
    polls = Polls(gate)
    for _ in range(3):
        await polls.turn()
    assert (gate.acquired, gate.pauses) == (0, [])
    polls.refused(7.0)
    polls.refused(None)
    assert gate.pauses == [7.0, 5.0]
    await asyncio.gather(*(polls.turn() for _ in range(4)))
    assert gate.acquired == 4


async def test_rows_share_the_usual_latency(monkeypatch) -> None:
    """What one row's job took sets when the first poll of every other row is due."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    polls = Polls(Gate())
    await polls.wait(0.0)
    polls.ended(10.0)
    await polls.wait(0.0)
    polls.ended(600.0)
    polls.ended(10.0)
    await polls.wait(0.0)
    assert waits == pytest.approx([0.05, 6.0, 6.0])


@pytest.mark.parametrize(
    ("base_url", "given", "rate"),
    [
        (None, None, 50.0),
        ("https://api.segmind.com/", None, 50.0),
        ("http://127.0.0.1:8700", None, None),
        (None, 0.0, 0.0),
        (None, 600.0, 600.0),
        ("http://127.0.0.1:8700", 5.0, 5.0),
    ],
)
def test_the_default_rate(base_url: str | None, given: float | None, rate: float | None) -> None:
    """50 submits a minute at Segmind's own host, no limit elsewhere, and what the user says everywhere."""
    options = GenerateOptions(base_url=base_url, requests_per_minute=given)
    assert resolve_backend(BackendSettings(), options).requests_per_minute == rate
    assert resolve_backend(BackendSettings("sandbox"), GenerateOptions()).requests_per_minute is None
