"""What goes wrong with single answers: each trouble turns an honest answer into another one.

A trouble strikes at one kind of endpoint, for a number of answers or up to a moment. Nothing here changes what the
service knows: a POST is taken on, or not, before its answer is spoilt.
"""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from .history_troubles import HISTORY_SPOILERS
from .wire import Reply, Request

GETS = frozenset({"status", "result", "download", "history", "detail", "balance"})
_HTML = {"Content-Type": "text/html"}
_PAGE = b"<!DOCTYPE html><html><head><title>%d</title></head><body>Something is wrong: status error</body></html>"


@dataclass(frozen=True, slots=True)
class Trouble:
    """One misbehaviour. `where`: a kind of endpoint, `get` for all GETs, `poll` for status and result, `any`.

    The first `skip` answers are spared, then `times` of them are struck (each with `chance`), but none from `until`
    on. `accepts`: whether a POST that is struck was taken on. `row`: only calls whose body has this prompt.
    """

    where: str
    fault: str
    arg: Any = None
    skip: int = 0
    times: int = 1_000_000
    until: float = float("inf")
    chance: float = 1.0
    accepts: bool = True
    row: str | None = None

    def meets(self, kind: str) -> bool:
        groups = {"get": GETS, "poll": {"status", "result"}, "records": {"history", "detail"}}
        return self.where in (kind, "any") or kind in groups.get(self.where, ())


class Troubles:
    """The troubles of a world, and which of them strike."""

    def __init__(self, troubles: list[Trouble], rng: Random) -> None:
        self._met = [[trouble, 0] for trouble in troubles]
        self._rng = rng

    def strike(self, kind: str, request: Request) -> list[Trouble]:
        """The troubles that strike this request, in order."""
        struck = []
        for entry in self._met:
            trouble = entry[0]
            if not trouble.meets(kind) or request.at >= trouble.until:
                continue
            if trouble.row is not None and trouble.row.encode() not in request.body:
                continue
            entry[1] += 1
            if trouble.skip < entry[1] <= trouble.skip + trouble.times and self._rng.random() < trouble.chance:
                struck.append(trouble)
        return struck

    def connecting(self, kind: str, now: float) -> str | None:
        """What is wrong with a new connection for a kind of request."""
        for entry in self._met:
            trouble = entry[0]
            if trouble.fault in ("refused", "connect-hang") and trouble.meets(kind) and now < trouble.until:
                entry[1] += 1
                if trouble.skip < entry[1] <= trouble.skip + trouble.times:
                    return "hang" if trouble.fault == "connect-hang" else "refused"
        return None


def spoil(trouble: Trouble, reply: Reply, request: Request, rng: Random) -> Reply:
    """The answer as it goes out under a trouble."""
    spoilt = _SPOILERS[trouble.fault](reply, trouble.arg, request, rng)
    return replace(spoilt, note=f"{spoilt.note} {trouble.fault}({_short(trouble.arg)})".strip())


def _short(arg: Any) -> str:
    text = "" if arg is None else repr(arg)
    return text if len(text) < 60 else text[:57] + "..."


Spoiler = Callable[[Reply, Any, Request, Random], Reply]


def _status(reply: Reply, arg: Any, request: Request, rng: Random) -> Reply:
    """Another status with a JSON body of some shape: `arg` is (status, body)."""
    status, body = arg
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = {"Content-Type": "application/json"} if not isinstance(body, bytes) else _HTML
    return replace(reply, status=status, body=data, headers=_rest(reply) | kind)


def _html(reply: Reply, arg: Any, request: Request, rng: Random) -> Reply:
    return replace(reply, status=arg, body=_PAGE % arg, headers=_rest(reply) | _HTML)


def _redirect(reply: Reply, arg: Any, request: Request, rng: Random) -> Reply:
    status, url = arg
    return replace(reply, status=status, body=b"", headers=_rest(reply) | {"Location": url})


def _body(reply: Reply, arg: Any, request: Request, rng: Random) -> Reply:
    """The same status with another body: bytes, or a JSON value."""
    return replace(reply, body=arg if isinstance(arg, bytes) else json.dumps(arg).encode())


def _fields(reply: Reply, arg: Any, request: Request, rng: Random) -> Reply:
    """JSON fields changed, added, or (where the value is `...`) taken away; only of a JSON object."""
    value = _json_of(reply)
    if not isinstance(value, dict):
        return reply
    value = {name: item for name, item in {**value, **arg}.items() if item is not ...}
    return replace(reply, body=json.dumps(value).encode())


def _state(reply: Reply, arg: Any, request: Request, rng: Random) -> Reply:
    """A job's body with another state, and what goes with it."""
    value = _json_of(reply)
    if not isinstance(value, dict) or "status" not in value:
        return reply
    rest = {name: item for name, item in value.items() if name not in ("output", "images")}
    status = 422 if arg == "FAILED" and rng.random() < 0.5 else reply.status
    error = {"error": "worker lost, try again"} if arg == "FAILED" else {}
    return replace(reply, status=status, body=json.dumps(rest | {"status": arg} | error).encode())


def _texts(reply: Reply, arg: Any, request: Request, rng: Random) -> Reply:
    """Every number and truth value of a JSON body as text."""
    return replace(reply, body=json.dumps(_as_text(_json_of(reply))).encode()) if _json_of(reply) else reply


def _as_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_text(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_as_text(item) for item in value]
    return str(value) if isinstance(value, int | float) else value


def _headers(reply: Reply, arg: Any, request: Request, rng: Random) -> Reply:
    """Headers set, or taken away where the value is None."""
    headers = {name: value for name, value in (reply.headers | arg).items() if value is not None}
    return replace(reply, headers=headers)


def _encoding(reply: Reply, arg: Any, request: Request, rng: Random) -> Reply:
    if arg == "gzip":
        return replace(
            reply, body=gzip.compress(reply.body, 1, mtime=0), headers=reply.headers | {"Content-Encoding": "gzip"}
        )
    if arg == "gzip-lie":
        return replace(reply, headers=reply.headers | {"Content-Encoding": "gzip"})
    if arg == "bom":
        return replace(reply, body=b"\xef\xbb\xbf" + reply.body)
    return replace(reply, body=reply.body.decode("utf-8", "replace").encode("latin-1", "replace") + b"\xe9")


def _slow(reply: Reply, arg: Any, request: Request, rng: Random) -> Reply:
    return replace(reply, delay=reply.delay + arg)


def _drip(reply: Reply, arg: Any, request: Request, rng: Random) -> Reply:
    return replace(reply, drip=arg)


def _hang(reply: Reply, arg: Any, request: Request, rng: Random) -> Reply:
    return replace(reply, hang=True)


def _cut(reply: Reply, arg: Any, request: Request, rng: Random) -> Reply:
    """The connection ends within the body; `arg` is (share of the body, how it ends)."""
    share, end = arg
    return replace(reply, cut=int(len(reply.body) * share), end=end)


def _gone(reply: Reply, arg: Any, request: Request, rng: Random) -> Reply:
    """The connection ends without an answer: `arg` is (after how long, how)."""
    return replace(reply, silent=True, delay=arg[0], end=arg[1])


def _length(reply: Reply, arg: Any, request: Request, rng: Random) -> Reply:
    """`chunked`, `close`, or how many bytes too many (or too few) the header says."""
    if isinstance(arg, str):
        return replace(reply, length=arg)
    return replace(reply, length=max(0, len(reply.body) + arg), end="close")


def _long(reply: Reply, arg: Any, request: Request, rng: Random) -> Reply:
    return replace(reply, after=b"<!-- served by cache 7 -->")


def _hints(reply: Reply, arg: Any, request: Request, rng: Random) -> Reply:
    return replace(reply, before=b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n")


def _same(reply: Reply, arg: Any, request: Request, rng: Random) -> Reply:
    return reply


def _rest(reply: Reply) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name in ("Date", "Server")}


def _json_of(reply: Reply) -> Any:
    try:
        return json.loads(reply.body)
    except ValueError:
        return None


_SPOILERS: dict[str, Spoiler] = {
    "status": _status,
    "html": _html,
    "redirect": _redirect,
    "body": _body,
    "fields": _fields,
    "state": _state,
    "texts": _texts,
    "headers": _headers,
    "encoding": _encoding,
    "slow": _slow,
    "drip": _drip,
    "hang": _hang,
    "cut": _cut,
    "gone": _gone,
    "length": _length,
    "long": _long,
    "hints": _hints,
    "refused": _same,
    "connect-hang": _same,
    "page-size": _same,
    "page-ignored": _same,
    "page-clamped": _same,
    "page-scrambled": _same,
    "page-cursor": _same,
    **HISTORY_SPOILERS,
}


def rewrite(trouble: Trouble, request: Request) -> None:
    """Change the query of a request for a list, as a service that ignores or limits parameters reads it."""
    if trouble.fault == "page-size":
        request.query["per_page"] = str(min(int(request.query.get("per_page", "20")), trouble.arg))
    elif trouble.fault == "page-ignored":
        request.query["page"] = "1"
    elif trouble.fault == "page-clamped":
        request.query["clamped"] = "yes"
    elif trouble.fault in ("page-scrambled", "page-cursor"):
        request.query[trouble.fault.removeprefix("page-")] = "yes"
