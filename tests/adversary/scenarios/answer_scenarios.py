"""How each line of the table in docs/design/pay-once.md is played: the scripts of the service, by call and answer."""

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..world.api import CDN
from ..world.images import png
from ..world.wire import Reply
from .one_row import NO_CONNECTION, Answer, Play, Spoil

_PAGE = b"<!DOCTYPE html><html><body>status: error</body></html>"
_SHORT_LAG_S = 20.0
"""A history lag so short that the last look comes while the run still goes on."""
_MEMORY, _CONTENT, _SAMPLER = "CUDA out of memory, try again", "NSFW content detected", "the sampler is wrong"


def _json(status: int, value: Any) -> Reply:
    return Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


def _error(status: int, text: str = "no") -> Reply:
    return _json(status, {"error": text})


def _html(status: int) -> Reply:
    return Reply(status, _PAGE, {"Content-Type": "text/html"})


def _redirect(status: int, url: str) -> Reply:
    return Reply(status, b"", {"Location": url})


def _taken(reply: Reply) -> Spoil:
    """The service takes the call on, and gives this answer."""
    return lambda _: reply


def _changed(change: Callable[[Any], Any], status: int | None = None) -> Spoil:
    """The honest answer with its JSON changed, and its status."""

    def spoil(honest: Reply) -> Reply:
        body = json.dumps(change(json.loads(honest.body))).encode()
        return replace(honest, body=body, status=honest.status if status is None else status)

    return spoil


def _with(http: int | None = None, /, **fields: Any) -> Spoil:
    """The honest answer with some fields of its JSON set, and its HTTP status; fields that are `...` are left out."""
    return _changed(lambda value: {name: item for name, item in (value | fields).items() if item is not ...}, http)


def _under_data(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Spoil:
    """An answer of the history with its row, or each of its rows, changed."""

    def changed(value: dict[str, Any]) -> dict[str, Any]:
        rows = value["data"]
        return value | {"data": [change(row) for row in rows] if isinstance(rows, list) else change(rows)}

    return _changed(changed)


def _row_with(**fields: Any) -> Spoil:
    return _under_data(lambda row: {name: item for name, item in (row | fields).items() if item is not ...})


def _cut(honest: Reply) -> Reply:
    """The connection ends amid the body."""
    return replace(honest, cut=len(honest.body) // 2)


def _half(honest: Reply) -> Reply:
    """Half of the bytes, sent as if they were all."""
    return replace(honest, body=honest.body[: len(honest.body) // 2])


def _junk(honest: Reply) -> Reply:
    return replace(honest, body=_PAGE)


def _nameless(honest: Reply) -> Reply:
    """The honest answer without the header `x-request-id`."""
    return replace(honest, headers={name: value for name, value in honest.headers.items() if name != "x-request-id"})


def _status(status: int) -> Spoil:
    return lambda honest: replace(honest, status=status)


def _with_two_images(honest: Reply) -> Reply:
    """A v1 answer of JSON with both images of the job."""
    number = honest.headers["x-request-id"][:8]
    images = [base64.b64encode(png(f"generations/{number}{letter}.png")).decode() for letter in "ab"]
    return replace(honest, body=json.dumps(images).encode())


def _as_text(row: dict[str, Any]) -> dict[str, Any]:
    body = {name: str(value) if isinstance(value, int) else value for name, value in row["request_body"].items()}
    return row | {"request_body": json.dumps(body)}


def _cut_off(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"request_body": json.dumps(row["request_body"])[:-20]}


_GONE = Reply(silent=True, end="reset")
_NEVER = Reply(hang=True)
_LOST = {"submit": [_taken(_GONE)]}
"""The call is taken on, and its connection breaks before an answer."""
_UNTOLD: tuple[Answer, ...] = (_html(200), _html(404), _html(503), _error(500), _json(200, []), _GONE)
"""Answers to a GET from which nothing can be learned about the job."""
_OTHERS_ROW = {"request_id": "another-1", "model_name": "flux-2-klein-9b", "model_status": "COMPLETED"}
_OTHERS_ROW |= {"request_body": {"prompt": "another"}, "model_created": "2026-12-01T09:29:00Z"}
_NEW_PLACE = "https://elsewhere.example.com/generations/a.png"


def _submits(*answers: Answer, **how: Any) -> list[Play]:
    """One play for each answer to the POST."""
    return [Play({"submit": [answer]}, **how) for answer in answers]


def _sequence(*answers: Answer, **how: Any) -> list[Play]:
    """One play, in which these are the answers to the POSTs one after the other."""
    return [Play({"submit": list(answers)}, **how)]


def _runs(*answers: Answer, **how: Any) -> list[Play]:
    """The same as `_submits`, for v1."""
    return _submits(*answers, v1=True, **how)


def _once(*answers: Answer, kind: str = "status", **how: Any) -> list[Play]:
    """One play for each answer that comes once to a GET."""
    return [Play({kind: [answer]}, **how) for answer in answers]


def _polls(*answers: Answer, **how: Any) -> list[Play]:
    """One play for each answer that polls get each time."""
    return [Play({"status": answer}, **how) for answer in answers]


def _results(*answers: Answer, **how: Any) -> list[Play]:
    """One play for each answer that says each time what the result of a finished job is."""
    return [Play({"result": answer}, **how) for answer in answers]


def _downloads(*answers: Answer, **how: Any) -> list[Play]:
    return [Play({"download": answer}, **how) for answer in answers]


def _looks(*answers: Answer, **how: Any) -> list[Play]:
    """One play for each answer that the listing gives each time, to looks for a call whose connection broke.

    The last look comes after the history's lag.
    """
    how = {"shown": True, "lag": _SHORT_LAG_S} | how
    return [Play(_LOST | {"history": answer}, **how) for answer in answers]


def _expired(*answers: Answer, **how: Any) -> list[Play]:
    """One play for each answer that the history gives by id, each time, while polls are answered 404."""
    how = {"shown": True} | how
    return [Play({"status": _error(404), "detail": answer}, **how) for answer in answers]


def _old(script: dict[str, Any], **how: Any) -> list[Play]:
    """One play: nine days after a run that could not fetch the result."""
    return [Play(script, earlier={"download": _html(403)}, **{"shown": True} | how)]


def _failing(why: str, script: dict[str, Any], **how: Any) -> list[Play]:
    return [Play(script, fates=(why,), **how)]


SCENARIOS: dict[tuple[str, str], list[Play]] = {
    ("submit", "200 with a request_id"): [Play()],
    ("submit", "201 or 202 with a request_id"): _submits(_status(201), _status(202)),
    ("submit", "no connection, then 200"): _submits(NO_CONNECTION),
    ("submit", "429, then 200"): _submits(_error(429, "rate_limit_exceeded")),
    ("submit", "400, 406, 409, 413, 415 or 422"): _submits(*map(_error, (400, 406, 409, 413, 415, 422))),
    ("submit", "400 or 422 that names a content policy"): _submits(_error(400, _CONTENT), _error(422, _CONTENT)),
    ("submit", "401"): _submits(_error(401)),
    ("submit", "402, or 406 for want of credits"): _submits(_error(402), _error(406, "Insufficient credits")),
    ("submit", "403, 404 or 410"): _submits(_error(403), _error(404), _html(404), _error(410)),
    ("submit", "405"): _submits(_error(405)),
    ("submit", "500 or 503, and the history knows the call"): _submits(
        _taken(_error(500)), _taken(_error(503)), shown=True
    ),
    ("submit", "408, 502, 503 or 504, and the history does not know the call; then 200"): _submits(
        *map(_error, (408, 502, 503, 504))
    ),
    ("submit", "500, and the history does not know the call; then 200"): _submits(_error(500)),
    ("submit", "500 each time, and the history does not know the call"): _sequence(*3 * (_error(500),)),
    ("submit", "500 or 503, and the history is not understood"): [
        Play({"submit": [_taken(_error(status))], "history": _json(200, {"error": "try later"})}, shown=True)
        for status in (500, 503)
    ],
    ("submit", "2xx without a request_id"): _submits(
        _with(request_id=...), *map(_taken, (_json(200, {}), _json(202, {"message": "ok"}), Reply(204), _html(200)))
    ),
    ("submit", "200 that is cut off"): _submits(_cut, _half),
    ("submit", "a redirect"): _submits(
        *(_taken(_redirect(status, "https://example.com/login")) for status in (302, 307))
    ),
    ("submit", "the connection breaks"): _submits(_taken(_GONE), _taken(replace(_GONE, end="close"))),
    ("submit", "none until --deadline"): _submits(_taken(_NEVER)),
    ("run (v1)", "200 with an image"): _runs(lambda honest: honest),
    ("run (v1)", "200 with an image and no id"): _runs(_nameless),
    ("run (v1)", "200 with two images"): _runs(_with_two_images, outputs=2),
    ("run (v1)", "203 or 206 with an image"): _runs(_status(203), _status(206)),
    ("run (v1)", "no connection, then 200"): _runs(NO_CONNECTION),
    ("run (v1)", "429, then 200"): _runs(_error(429)),
    ("run (v1)", "500, then 200"): _runs(_error(500)),
    ("run (v1)", "502, 503 or 504, then 200"): _runs(*map(_error, (502, 503, 504))),
    ("run (v1)", "400, 406 or 422"): _runs(*map(_error, (400, 406, 422))),
    ("run (v1)", "200 with junk or cut off, with an id, and the history has the image"): _runs(
        _junk, _half, _cut, shown=True
    ),
    ("run (v1)", "200 with junk or cut off, with an id"): _runs(_junk, _half, _cut),
    ("run (v1)", "200 with junk or cut off, and no id"): _runs(
        *(lambda honest, spoil=spoil: spoil(_nameless(honest)) for spoil in (_junk, _half, _cut))
    ),
    ("run (v1)", "a redirect"): _runs(_taken(_redirect(302, "https://example.com/login"))),
    ("run (v1)", "the connection breaks, or no answer until --deadline"): _runs(_taken(_GONE), _taken(_NEVER)),
    ("poll", "503 or 429 with a JSON body that has a status, then the result"): _once(
        _json(503, {"status": "FAILED"}), _json(503, {"status": "error"}), _json(429, {"status": "FAILED"})
    ),
    ("poll", "FAILED with HTTP 500, then the result"): _once(_with(500, status="FAILED")),
    ("poll", "another request_id, in whatever state"): _polls(
        _with(request_id="another"), _with(422, request_id="another", status="FAILED")
    ),
    ("poll", "an unknown state"): _polls(*(_with(status=word) for word in ("ERROR", "CANCELLED", "RETRYING", ""))),
    ("poll", "HTML, 5xx or none"): _polls(*_UNTOLD, _with(500, status="FAILED")),
    ("poll", "HTML, 5xx or none, and the history has the result"): _polls(*_UNTOLD, shown=True),
    ("poll", "401"): _polls(_error(401)),
    ("poll", "404"): _polls(_error(404)),
    ("poll", "404, and the history has the result"): _polls(_error(404), shown=True),
    ("poll", "FAILED, and the result says so"): _failing(_SAMPLER, {}),
    ("poll", "FAILED for its content, and the result says so"): _failing(_CONTENT, {}),
    ("poll", "FAILED for want of memory, and the result says so; then a job that completes"): _failing(_MEMORY, {}),
    ("poll", "FAILED for want of memory, and the result names a cost"): _failing(
        _MEMORY,
        {
            "status": _with(422, status="FAILED", error=_MEMORY, metrics={"cost": 0.04}),
            "result": _with(422, status="FAILED", error=_MEMORY, metrics={"cost": 0.04}),
        },
    ),
    ("poll", "FAILED, and the result is COMPLETED"): _polls(_with(422, status="FAILED", error=_SAMPLER)),
    ("poll", "FAILED, and the result is not understood"): [
        Play({"status": _with(422, status="FAILED", error=_SAMPLER), "result": answer}) for answer in _UNTOLD
    ],
    ("poll", "FAILED, and only the history says so too"): _failing(_SAMPLER, {"result": _html(503)}, shown=True),
    ("result", "COMPLETED without an output"): _results(_with(output=..., images=...), _with(output="", images=[])),
    ("result", "COMPLETED without an output, and the history has it"): _results(
        _with(output=..., images=...), shown=True
    ),
    ("result", "COMPLETED under another request_id"): _results(_with(request_id="another")),
    ("result", "HTML, 5xx or none"): _results(*_UNTOLD),
    ("result", "several images"): [Play(outputs=3)],
    ("download", "HTML under 200"): _downloads(_html(200)),
    ("download", "HTML under 200, then the image"): _once(_html(200), kind="download"),
    ("download", "a part of the image"): _downloads(_half, _cut),
    ("download", "a part of the image, then all of it"): _once(_half, _cut, kind="download"),
    ("download", "404, 403, 503 or none"): _downloads(*map(_html, (404, 403, 503)), _GONE, _NEVER),
    ("download", "404, and the history names another address"): [
        Play({"result": _with(output=f"https://{CDN}/gone.png", images=...)}, shown=True)
    ],
    ("download", "404, and the history by id is not understood"): [
        Play({"download": _html(404), "detail": answer}, lag=_SHORT_LAG_S)
        for answer in (_json(200, {"error": "try later"}), _json(200, [_OTHERS_ROW]), *_UNTOLD)
    ],
    ("download", "302 to the image"): [
        Play({"download": [_redirect(302, f"https://{CDN}/generations/00000001a.png?sig=1")]}),
    ],
    ("download", "503 or a connection that breaks, then the image"): _once(_html(503), _GONE, kind="download"),
    ("history look", "the call"): [Play(_LOST, shown=True)],
    ("history look", "the call, numbers and booleans as text"): _looks(_under_data(_as_text)),
    ("history look", "the call, FAILED"): _failing(_SAMPLER, _LOST, shown=True),
    ("history look", "an empty list, before the lag"): [Play(_LOST)],
    ("history look", "an empty list, or other calls only, after the lag"): [
        Play({"submit": [_GONE]}, lag=_SHORT_LAG_S, others=others) for others in (0, 1, 7)
    ],
    ("history look", "200 with an error"): _looks(
        _json(200, {"error": "try later"}), _with(error="try later"), _with(status="error"), _with(success=False)
    ),
    ("history look", "HTML, 401, 404, 429, 5xx or none"): _looks(*_UNTOLD, *map(_error, (401, 404, 429, 503))),
    ("history look", "rows under another name"): _looks(
        *(_changed(lambda page, name=name: {name: page["data"]}) for name in ("items", "requests", "results")),
        _changed(lambda page: {"data": {"items": page["data"]}}),
        _changed(lambda page: page["data"]),
    ),
    ("history look", "a row whose body is missing or cut off"): _looks(
        _row_with(request_body=...), _row_with(request_body=None), _row_with(request_body={}), _under_data(_cut_off)
    ),
    ("history look", "a row without an id"): _looks(_row_with(request_id=...), _row_with(request_id=None)),
    ("history look", "a row that is no object"): _looks(_changed(lambda page: {"data": page["data"] and [7]})),
    ("history look", "a row with a model's name that we do not know"): _looks(_row_with(model_name="the new name")),
    ("history look", "pages that repeat"): _looks(_json(200, {"data": [_OTHERS_ROW]})),
    ("history look", "an empty page before the total is reached"): _looks(_json(200, {"data": [], "total": 3})),
    ("history by id", "the result"): _expired(lambda honest: honest),
    ("history by id", "FAILED"): _failing(_SAMPLER, {"status": _error(404)}, shown=True),
    ("history by id", "404, also as HTML"): _expired(_error(404), _html(404)),
    ("history by id", "200 with an error"): _expired(_json(200, {"error": "try later"})),
    ("history by id", "HTML, 5xx or none"): _expired(_html(200), _html(503), _error(500), _GONE),
    ("history by id", "the row of another call"): _expired(_row_with(request_id="another")),
    ("history by id", "a row without its address"): _expired(_row_with(generation_url=None)),
    ("nine days later", "the image is there"): _old({"download": lambda _: Reply(200, png("kept for longer"))}),
    ("nine days later", "the image is 404"): _old({}),
    ("nine days later", "the image is HTML under 200"): _old({"download": _html(200)}),
    ("nine days later", "record and history know nothing"): _old({"detail": _error(404)}),
    ("nine days later", "the history's row has no address"): _old({"detail": _row_with(generation_url=None)}),
    ("nine days later", "the image is 403 or 503"): [
        play for status in (403, 503) for play in _old({"download": _html(status)})
    ],
    ("nine days later", "the record is gone, and the history by id is not understood"): [
        play for answer in (*_UNTOLD, _row_with(request_id="another")) for play in _old({"detail": answer})
    ],
}
"""By call and answer, how each is played: all plays of a line have to go as the line says."""
