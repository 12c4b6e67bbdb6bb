"""The pace of polls, and the rates that are taken where nobody says one."""

import asyncio

import pytest

from prefect_imagegen.app.adapters import resolve_backend
from prefect_imagegen.app.options import GenerateOptions
from prefect_imagegen.app.settings import BackendSettings
from prefect_imagegen.io.polls import Polls

pytestmark = pytest.mark.anyio


class Loop:
    """The running loop's time, which passes when somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []
        monkeypatch.setattr(asyncio, "sleep", self.sleep)
        monkeypatch.setattr(asyncio, "get_running_loop", lambda: self)

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    """A loop whose time passes by sleeping."""
    return Loop(monkeypatch)


async def seconds_of(loop: Loop, polls: Polls, turns: int) -> float:
    """How long so many polls take."""
    start = loop.now
    for _ in range(turns):
        await polls.turn()
    return loop.now - start


async def test_polls_are_free_until_one_is_refused(loop: Loop) -> None:
    """Without a 429 no poll waits for another."""
    assert await seconds_of(loop, Polls(), 1000) == 0.0


@pytest.mark.parametrize(("pause", "seconds"), [(7.0, 7.0), (None, 5.0)])
async def test_a_429_pauses_polls_and_spreads_them(loop: Loop, pause: float | None, seconds: float) -> None:
    """After a 429 no poll goes out for the time that was asked for, then one after the other, with a gap between."""
    polls = Polls()
    polls.refused(pause)
    assert await seconds_of(loop, polls, 1) == pytest.approx(seconds)
    assert await seconds_of(loop, polls, 10) == pytest.approx(10 * 0.2)


async def test_a_longer_pause_is_not_cut_short(loop: Loop) -> None:
    """A 429 that asks for less does not end the pause that another one has asked for."""
    polls = Polls()
    polls.refused(60.0)
    polls.refused(1.0)
    assert await seconds_of(loop, polls, 1) == pytest.approx(60.0)


async def test_many_429_spread_polls_no_further_than_seconds(loop: Loop) -> None:
    """Each further 429 doubles the gap, up to five seconds."""
    polls, gaps = Polls(), []
    for _ in range(8):
        polls.refused(1.0)
        await polls.turn()
        gaps.append(await seconds_of(loop, polls, 1))
    assert gaps == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0])


@pytest.mark.parametrize(("refusals", "minutes"), [(1, 2), (6, 7)])
async def test_a_429_is_forgotten_after_minutes(loop: Loop, refusals: int, minutes: int) -> None:
    """The gap is halved with every minute without a refusal, until there is none: one 429 costs a run little."""
    polls = Polls()
    for _ in range(refusals):
        polls.refused(1.0)
    last = await seconds_of(loop, polls, 2)
    for _ in range(minutes):
        loop.now += 61.0
        gap = await seconds_of(loop, polls, 2)
        assert gap <= last
        last = gap
    assert await seconds_of(loop, polls, 1000) == 0.0


async def test_nobody_answered_means_fewer_polls(loop: Loop) -> None:
    """While polls get no answer that is understood each waits longer, up to five seconds; one answer ends that."""
    polls = Polls()
    for _ in range(20):
        polls.failed()
        await polls.wait(0.0)
    assert loop.sleeps[:4] == pytest.approx([0.2, 0.4, 0.8, 1.6])
    assert loop.sleeps[-1] == 5.0
    polls.answered()
    await polls.wait(0.0)
    assert loop.sleeps[-1] == pytest.approx(0.05)


async def test_rows_share_the_usual_latency(loop: Loop) -> None:
    """What one row's job took sets when the first poll of every other row is due."""
    polls = Polls()
    await polls.wait(0.0)
    polls.ended(10.0)
    await polls.wait(0.0)
    polls.ended(600.0)
    polls.ended(10.0)
    await polls.wait(0.0)
    assert loop.sleeps == pytest.approx([0.05, 6.0, 6.0])


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
