"""What is learned from calls: how long one may take, and how many may be in flight."""

from prefect_imagegen.core.policy.adaptive_limit import AdaptiveLimit
from prefect_imagegen.core.policy.latency import Latencies


def test_ten_times_the_usual() -> None:
    """A call is stuck after ten times the 99th percentile; twenty must be known, and a floor holds."""
    latencies = Latencies()
    for _ in range(19):
        latencies.add(2.0)
    assert latencies.limit(at_least=5.0, unmeasured=60.0) == 60.0
    latencies.add(2.0)
    assert latencies.limit(at_least=5.0, unmeasured=60.0) == 20.0
    assert latencies.limit(at_least=30.0, unmeasured=60.0) == 30.0


def test_stuck_calls_do_not_make_others_patient() -> None:
    """A slot is waited for five times the median, however long some calls were stuck."""
    latencies = Latencies()
    for number in range(100):
        assert latencies.patience(at_least=5.0, unmeasured=60.0) == (60.0 if number < 20 else 5.0)
        latencies.add(300.0 if number % 10 == 9 else 1.0)
    assert latencies.patience(at_least=30.0, unmeasured=60.0) == 30.0


def test_one_in_a_hundred_does_not_count() -> None:
    """The slowest hundredth does not move the limit; only the newest thousand calls are kept."""
    latencies = Latencies()
    for number in range(1000):
        latencies.add(500.0 if number % 101 == 0 else 1.0)
    assert latencies.p99 == 1.0
    for _ in range(1000):
        latencies.add(3.0)
    assert latencies.p99 == 3.0


def test_one_cut_for_a_burst() -> None:
    """Sixteen refusals of calls that were sent together cut the limit once, by half."""
    limit = AdaptiveLimit(16)
    for _ in range(16):
        limit.answered(refused=True, sent=1.0, at=2.0)
    assert (limit.now, limit.cuts) == (8, 1)
    limit.answered(refused=True, sent=3.0, at=4.0)
    assert (limit.now, limit.cuts) == (4, 2)


def test_stray_refusals_cut_nothing() -> None:
    """One refusal in ten is no burst: an API that fails now and then is not slowed down for it."""
    limit = AdaptiveLimit(16)
    for number in range(500):
        limit.answered(refused=number % 10 == 9, sent=float(number), at=number + 0.5)
    assert (limit.now, limit.cuts) == (16, 0)


def test_it_comes_back() -> None:
    """From its floor of an eighth the limit returns to the most within some rounds of successes; never above."""
    limit = AdaptiveLimit(64)
    for burst in range(20):
        for _ in range(64):
            limit.answered(refused=True, sent=burst * 2.0, at=burst * 2.0 + 1)
    assert limit.now == 8
    answers = 0
    while limit.now < 64:
        limit.answered(refused=False, sent=100.0, at=101.0)
        answers += 1
    assert answers < 8 * 64
    limit.answered(refused=False, sent=100.0, at=101.0)
    assert limit.now == 64


def test_one_is_the_least() -> None:
    """Somebody must go on asking."""
    limit = AdaptiveLimit(1)
    for second in range(50):
        limit.answered(refused=True, sent=float(second), at=second + 0.5)
    assert limit.now == 1


def test_more_room_is_grown_into() -> None:
    """A limit whose most is raised grows with the next answers; it is never lowered so."""
    limit = AdaptiveLimit(4)
    limit.raise_to(10)
    limit.raise_to(2)
    assert (limit.now, limit.most) == (4, 10)
    for at in range(60):
        limit.answered(refused=False, sent=at, at=at + 1)
    assert limit.now == 10
