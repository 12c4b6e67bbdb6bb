"""Draws single troubles: each maker knows one way in which a service misbehaves."""

from collections.abc import Callable
from random import Random
from typing import Any

from ..world.troubles import Trouble
from .scenario import Scenario

Maker = Callable[[Scenario, Random], Trouble]

_ERROR_BODIES: tuple[Any, ...] = (
    {"status": "error", "message": "upstream unavailable"},
    {"status": "FAILED", "error": "gateway"},
    {"status": "failed", "code": 17},
    {"error": "internal"},
    {"detail": "try later"},
    [],
    None,
    b"",
    b"<html><body>status: error</body></html>",
)
_JUNK_BODIES: tuple[Any, ...] = (
    {"error": "temporarily unavailable"},
    {"message": "ok"},
    {},
    [],
    None,
    "ok",
    b"",
    b"<html>Please log in</html>",
    b'{"data": [',
    {"status": 200, "data": {}},
    {"status": "ok"},
)
_GET_STATUSES = (400, 401, 403, 404, 405, 408, 409, 410, 418, 422, 425, 429, 451, 500, 502, 503, 504, 520, 599)
_REDIRECTS = (301, 302, 303, 307, 308)
_RESETS = ("1", "1800000000", "1800000000000", "2026-12-01T09:31:00Z", "2026-12-01 09:31:00", "soon", "-5", "nan")


def lasting(rng: Random, scenario: Scenario) -> dict[str, Any]:
    """Draw for how long a trouble strikes: some answers, some minutes, or as long as the service misbehaves."""
    return rng.choice(
        (
            {"times": rng.randint(1, 3)},
            {"times": rng.randint(1, 3), "skip": rng.randint(0, 6)},
            {"times": 12},
            {"until": rng.choice((20.0, 60.0, 400.0))},
            {"chance": 0.4},
            {},
        )
    )


def get_status(where: str) -> Maker:
    def make(scenario: Scenario, rng: Random) -> Trouble:
        status, body = rng.choice(_GET_STATUSES), rng.choice(_ERROR_BODIES)
        # A job that both GETs call FAILED, with the status that says so, has failed for all that anybody can know.
        both = where != "poll" or status != 422
        return Trouble(where if both else "status", "status", (status, body), **lasting(rng, scenario))

    return make


def get_json_5xx(where: str) -> Maker:
    def make(scenario: Scenario, rng: Random) -> Trouble:
        arg = (rng.choice((429, 500, 503)), rng.choice(_ERROR_BODIES[:3]))
        return Trouble(where, "status", arg, times=rng.randint(1, 4), skip=rng.randint(0, 5))

    return make


def get_junk(where: str) -> Maker:
    def make(scenario: Scenario, rng: Random) -> Trouble:
        return Trouble(where, "body", rng.choice(_JUNK_BODIES), **lasting(rng, scenario))

    return make


def html(where: str) -> Maker:
    def make(scenario: Scenario, rng: Random) -> Trouble:
        return Trouble(where, "html", rng.choice((200, 200, 404, 403, 503)), **lasting(rng, scenario))

    return make


def redirect(where: str) -> Maker:
    def make(scenario: Scenario, rng: Random) -> Trouble:
        url = rng.choice(("https://login.example.com/", "/somewhere", "https://api.segmind.com/v2/requests/x", ""))
        return Trouble(where, "redirect", (rng.choice(_REDIRECTS), url), **lasting(rng, scenario))

    return make


def wire(where: str) -> Maker:
    def make(scenario: Scenario, rng: Random) -> Trouble:
        fault, arg = rng.choice(
            (
                ("slow", rng.choice((3.0, 20.0, 70.0, 150.0))),
                ("drip", rng.choice((1.0, 8.0))),
                ("hang", None),
                ("cut", (rng.random(), rng.choice(("close", "reset")))),
                ("gone", (rng.choice((0.0, 5.0)), rng.choice(("close", "reset")))),
                ("length", rng.choice(("chunked", "close", -3, 7))),
                ("long", None),
                ("hints", None),
                ("encoding", rng.choice(("gzip", "gzip-lie", "bom", "latin-1"))),
                ("texts", None),
                ("headers", {"Content-Type": rng.choice((None, "text/html", "image/jpeg", "application/xml;;"))}),
                ("refused", None),
                ("connect-hang", None),
            )
        )
        span = lasting(rng, scenario)
        if fault in ("hang", "slow", "connect-hang"):
            span = {"times": rng.randint(1, 3), "skip": rng.randint(0, 3)}
        return Trouble(where, fault, arg, **span)

    return make


def rate(scenario: Scenario, rng: Random) -> Trouble:
    return Trouble(
        "any", "status", (429, {"error": "rate_limit_exceeded"}), times=3, skip=rng.randint(0, 5), accepts=False
    )


def post_5xx(scenario: Scenario, rng: Random) -> Trouble:
    arg = (rng.choice((500, 502, 503, 504, 520)), rng.choice(_ERROR_BODIES))
    accepts = rng.random() < 0.5 and not scenario.options.v1
    return Trouble("submit", "status", arg, times=rng.randint(1, 3), skip=rng.randint(0, 2), accepts=accepts)


def post_4xx(scenario: Scenario, rng: Random) -> Trouble:
    status = rng.choice((400, 401, 402, 403, 404, 405, 406, 408, 409, 410, 413, 422, 429))
    text = rng.choice(("Insufficient credits", "Invalid content type", "bad prompt", "NSFW content", "no"))
    return Trouble("submit", "status", (status, {"error": text}), times=rng.randint(1, 2), accepts=False)


def post_lost(scenario: Scenario, rng: Random) -> Trouble:
    """A POST that gets no answer, or one that breaks off, whether the service took it on or not."""
    fault, arg = rng.choice(
        (
            ("gone", (rng.choice((0.0, 5.0, 50.0)), rng.choice(("close", "reset")))),
            ("gone", (1.0, "reset")),
            ("hang", None),
            ("cut", (rng.random() * 0.9, rng.choice(("close", "reset")))),
        )
    )
    accepts = fault == "cut" or rng.random() < 0.7
    return Trouble("submit", fault, arg, times=rng.randint(1, 3), skip=rng.randint(0, 1), accepts=accepts)


def post_junk(scenario: Scenario, rng: Random) -> Trouble:
    if scenario.options.v1:
        return post_lost(scenario, rng)
    fault, arg = rng.choice(
        (
            ("body", rng.choice(_JUNK_BODIES)),
            ("fields", {"request_id": rng.choice((..., None, 17, "", ["a"], {"id": "a"}))}),
            ("fields", {"extra": {"status": "FAILED"}, "status": "COMPLETED"}),
            ("status", (rng.choice((201, 202, 204)), rng.choice(_JUNK_BODIES))),
            ("headers", {"Content-Type": "text/html"}),
            ("encoding", rng.choice(("gzip", "bom"))),
            ("redirect", (303, "https://api.segmind.com/v2/requests/1")),
        )
    )
    return Trouble("submit", fault, arg, times=rng.randint(1, 3), skip=rng.randint(0, 1))


def post_slow(scenario: Scenario, rng: Random) -> Trouble:
    seconds = rng.choice((6.0, 40.0, 70.0, 85.0, 0.8 * scenario.options.deadline))
    return Trouble("submit", "slow", seconds, times=rng.randint(1, 3), skip=rng.randint(0, 1))


def poll_state(scenario: Scenario, rng: Random) -> Trouble:
    state = rng.choice(("ERROR", "CANCELLED", "UNKNOWN", "RETRYING", "succeeded", "Failed", ""))
    return Trouble(rng.choice(("status", "result")), "state", state, times=rng.randint(1, 4), skip=rng.randint(0, 3))


def poll_lie(scenario: Scenario, rng: Random) -> Trouble:
    """A trouble under which only one of the two GETs of a job says FAILED."""
    return Trouble(rng.choice(("status", "status", "result")), "state", "FAILED", times=rng.randint(1, 20))


def poll_no_output(scenario: Scenario, rng: Random) -> Trouble:
    arg = {"output": rng.choice((..., None, "", [])), "images": rng.choice((..., [], None))}
    return Trouble("result", "fields", arg, **lasting(rng, scenario))


def poll_fields(scenario: Scenario, rng: Random) -> Trouble:
    arg = rng.choice(
        (
            {"status": 3},
            {"status": None},
            {"status": ...},
            {"request_id": "somebody-else", "status": "FAILED"},
            {"metrics": "none", "seed": [7]},
            {"metrics": {"cost": "0.04", "total_time": "NaN"}},
        )
    )
    return Trouble("poll", "fields", arg, **lasting(rng, scenario))


def history_shape(scenario: Scenario, rng: Random) -> Trouble:
    names = ("items", "bare", "requests", "results", "by-id", "null", "nothing", "text", "empty-error", "nested-rows")
    return Trouble("history", "envelope", rng.choice(names), **whole(rng))


def whole(rng: Random) -> dict[str, Any]:
    return rng.choice(({}, {}, {"times": rng.randint(1, 3)}, {"chance": 0.5}))


def history_rows(scenario: Scenario, rng: Random) -> Trouble:
    fault, arg = rng.choice(
        (
            ("row-types", "texts"),
            ("row-types", "floats"),
            ("unreadable-inputs", rng.choice((0, 20, 60))),
            ("shuffled", None),
            ("oldest-first", None),
            ("doubled", None),
            ("page-size", rng.choice((1, 2, 10))),
            ("page-ignored", None),
            ("page-clamped", None),
        )
    )
    return Trouble("history", fault, arg, **(whole(rng) if not fault.startswith("page") else {}))


def rate_headers(scenario: Scenario, rng: Random) -> Trouble:
    headers = {"x-rate-limit-reset-at-utc": rng.choice(_RESETS), "Retry-After": rng.choice((None, "7", "never", "-1"))}
    return Trouble("any", "headers", headers)
