"""The pace of polls, and the default rates."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.resolve import resolve_provider
from prefect_imagegen.providers.segmind.polls import Polls
from prefect_imagegen.providers.settings import ProviderSettings

Runner = Callable[[Coroutine[Any, Any, Any]], Any]


class Api:
    """An API that is polled. `refuse` decides for each: a 429 that names these seconds, one without (True), or none.

    `asked` and `refused` are the times of all polls, and of those that were refused.
    """

    latency = 0.05

    def __init__(self, refuse: Callable[["Api", float], float | bool | None]) -> None:
        self.polls = Polls()
        self.asked: list[float] = []
        self.refused: list[float] = []
        self._refuse = refuse

    @property
    def answered(self) -> int:
        return len(self.asked) - len(self.refused)

    async def poll(self) -> None:
        sent = await self.polls.take()
        self.asked.append(sent)
        pause = self._refuse(self, sent)
        if pause:
            self.refused.append(sent)
        await asyncio.sleep(self.latency)
        if pause:
            self.polls.refused(sent, None if pause is True else pause)
        else:
            self.polls.answered(sent)

    async def run(self, seconds: float, rows: int = 6, every: float = 0.5) -> None:
        """Poll for so many rows, each again `every` seconds after its last answer."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds

        async def row() -> None:
            while loop.time() < end:
                await self.poll()
                await asyncio.sleep(every)

        tasks = [loop.create_task(row()) for _ in range(rows)]
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def per_minute(self, start: float, end: float) -> float:
        return sum(start <= at < end for at in self.asked) / (end - start) * 60


def once_at(*moments: float, pause: float | bool = True) -> Callable[[Api, float], float | bool]:
    """Refuse the first poll after each of these times, for `pause` seconds (True: no time is named)."""
    left = sorted(moments)

    def refuse(_: Api, now: float) -> float | bool:
        if left and now >= left[0]:
            left.pop(0)
            return pause
        return False

    return refuse


def limited(per_minute: int, *, tells: bool) -> Callable[[Api, float], float | bool]:
    """Refuse more polls than this in a calendar minute; with `tells` a refusal names the wait until the next."""

    taken: Counter[int] = Counter()

    def refuse(_: Api, now: float) -> float | bool:
        minute = int(now // 60)
        if taken[minute] < per_minute:
            taken[minute] += 1
            return False
        return max(1.0, 60 * (minute + 1) - now) if tells else True

    return refuse


def test_polls_are_free_until_one_is_refused(in_virtual_time: Runner) -> None:
    """Without a 429 no poll waits for another."""
    api = Api(lambda *_: None)
    in_virtual_time(api.run(60.0))
    assert api.per_minute(0, 60) == pytest.approx(6 * 60 / 0.55, rel=0.05)


@pytest.mark.parametrize(("pause", "seconds"), [(7.0, 7.0), (True, 5.0), (120.0, 120.0)])
def test_a_429_pauses_polls(pause: float | bool, seconds: float, in_virtual_time: Runner) -> None:
    """After a 429 no poll goes out for the time that it asks for; those under way then are no further refusals."""
    api = Api(once_at(30.0, pause=pause))
    in_virtual_time(api.run(300.0))
    refused = api.refused[0]
    following = [at for at in api.asked if at > refused + api.latency]
    assert following[0] == pytest.approx(refused + api.latency + seconds)


def test_one_429_costs_its_pause_only(in_virtual_time: Runner) -> None:
    """After one 429 polls are as many as before, as soon as its pause is over."""
    api = Api(once_at(30.0))
    in_virtual_time(api.run(120.0))
    assert api.per_minute(36, 96) >= 0.9 * api.per_minute(0, 30)


@pytest.mark.parametrize("moments", [(30.0, 60.0), (30.0, 45.0, 60.0, 75.0), (10.0, 100.0, 190.0, 280.0)])
def test_some_429_are_forgotten(moments: tuple[float, ...], in_virtual_time: Runner) -> None:
    """Two or more 429 slow polls down for minutes, not for the rest of the run."""
    api = Api(once_at(*moments))
    in_virtual_time(api.run(moments[-1] + 600.0))
    last = moments[-1]
    assert api.per_minute(last + 360, last + 600) >= 0.9 * api.per_minute(0, moments[0])


def test_whether_a_refusal_holds_is_asked_once(in_virtual_time: Runner) -> None:
    """While an API refuses everything it is asked by one row at a time, ever more seldom, once a minute at last."""
    api = Api(lambda _, now: 10.0 <= now < 1000.0)
    in_virtual_time(api.run(1200.0))
    later = [at for at in api.asked if 11.0 < at < 1000.0]
    gaps = [following - at for at, following in pairwise(later)]
    assert gaps[:3] == pytest.approx([10.0, 20.0, 40.0], abs=0.2)
    assert max(gaps) <= 61
    assert len(later) < 25
    assert api.per_minute(1080, 1200) >= 0.9 * api.per_minute(0, 10)


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("limit", [20, 60, 300])
def test_a_real_limit_is_kept(limit: int, tells: bool, in_virtual_time: Runner) -> None:
    """Where polls are limited, those asked for come below the limit, are not far below, and few are refused."""
    api = Api(limited(limit, tells=tells))
    in_virtual_time(api.run(2700.0))
    assert 0.7 * limit <= api.per_minute(900, 2700) <= 1.02 * limit
    assert sum(at >= 900 for at in api.refused) <= 25
    assert len(api.refused) <= 80


def test_a_limit_that_is_lifted_is_forgotten(in_virtual_time: Runner) -> None:
    """When a limit of half an hour is gone, polls are free again within minutes."""
    real = limited(60, tells=True)
    api = Api(lambda api, now: real(api, now) if now < 1800 else False)
    in_virtual_time(api.run(2700.0))
    assert api.per_minute(2400, 2700) >= 0.9 * 6 * 60 / 0.55


@given(
    limit=st.integers(10, 2000),
    rows=st.integers(1, 24),
    every=st.floats(0.5, 20.0),
    tells=st.booleans(),
    stray=st.lists(st.floats(0.0, 600.0), max_size=4),
)
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_limit_is_kept_and_used(
    limit: int, rows: int, every: float, tells: bool, stray: list[float], in_virtual_time: Runner
) -> None:
    """Whatever the limit, the rows and stray refusals: no minute has many more polls than it, and none starves."""
    real, strays = limited(limit, tells=tells), once_at(*stray)
    api = Api(lambda api, now: real(api, now) or strays(api, now))
    in_virtual_time(api.run(1500.0, rows, every))
    wanted = rows * 60 / (every + api.latency)
    asked = api.per_minute(900, 1500)
    assert asked <= 1.1 * limit + 2
    assert asked >= 0.5 * min(limit, wanted) - 2


def test_nobody_answered_means_fewer_polls(in_virtual_time: Runner) -> None:
    """While polls get no answer that is understood each waits longer, up to five seconds; one answer ends that."""

    async def work() -> None:
        polls, loop = Polls(), asyncio.get_running_loop()

        async def pause() -> float:
            start = loop.time()
            await polls.wait(0.0)
            return loop.time() - start

        pauses = []
        for _ in range(20):
            polls.note_failure()
            pauses.append(await pause())
        assert pauses[:4] == pytest.approx([0.2, 0.4, 0.8, 1.6])
        assert pauses[-1] == pytest.approx(5.0)
        polls.note_success()
        assert await pause() == pytest.approx(0.05)

    in_virtual_time(work())


def test_rows_share_the_usual_latency(in_virtual_time: Runner) -> None:
    """What one row's job took sets when the first poll of every other row is due."""

    async def work() -> None:
        polls, loop, pauses = Polls(), asyncio.get_running_loop(), []
        for latencies in ((), (10.0,), (600.0, 10.0)):
            for latency in latencies:
                polls.note_latency(latency)
            start = loop.time()
            await polls.wait(0.0)
            pauses.append(loop.time() - start)
        assert pauses == pytest.approx([0.05, 6.0, 6.0])

    in_virtual_time(work())


@pytest.mark.parametrize(
    ("base_url", "setting", "rate"),
    [
        (None, None, 50.0),
        ("https://api.segmind.com/", None, 50.0),
        ("http://127.0.0.1:8700", None, None),
        (None, 0.0, 0.0),
        (None, 600.0, 600.0),
        ("http://127.0.0.1:8700", 5.0, 5.0),
    ],
)
def test_the_default_rate(base_url: str | None, setting: float | None, rate: float | None) -> None:
    """50 submits a minute at Segmind's own host, no limit elsewhere, and what the user says everywhere."""
    options = RunOptions(base_url=base_url, requests_per_minute=setting)
    assert resolve_provider(ProviderSettings(), options).requests_per_minute == rate
    assert resolve_provider(ProviderSettings("sandbox"), RunOptions()).requests_per_minute is None
