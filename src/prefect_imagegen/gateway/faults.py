"""The fault script: makes a gateway misbehave, so that users can see what their flows do about it.

A script is JSON: `{"faults": [RULE, ...]}`. A rule names its `fault` and the calls that get it:

- `fault`, in place of the answer: `status` (with `status`: 401, 402, 403, 404, 410, 429, 500, 502, 503, 504, ...),
  `json_error` and `html` (with status 200, or `status`), `redirect`, `disconnect`. The JSON of the first two is
  `{"error": TEXT}`, or any object that is given as `body`, such as `{"status": "error", "message": "busy"}`.
- or when the answer comes: `hang`, whose head comes `seconds` later, on any call; the work goes on meanwhile.
  `slow_body`: the head at once, the rest over `seconds`.
- or to the answer: `truncated_body` (half of what is announced), `wrong_length` (announces more than comes),
  `wrong_content_type`, `empty_body` (200, no bytes), `junk` (random bytes as image/png); on `run` and `download` also
  `other_format` (the same picture in another image format).
- or about the job itself, on `submit` and `run`: `black_image`, `failed`, `unknown_state`, `expired_record`.
  A `failed` job answers with 422, or with `status` 200 where that is given.
- or to the request history, which is their default `on`: `clamp_pages` (page numbers beyond the last
  answer the last page again), `small_pages` (at most `per_page` rows a page, whatever was asked for; `clamp_pages`
  takes `per_page` too), and `history_shape`: the right rows, in another `shape`, always with status 200:
  `items` (`{"data": {"items": [...]}}`), `requests` (`{"requests": [...]}`), `bare` (the rows alone), `error`
  (`{"error": TEXT}`), `empty_body`, `cut` (half of the JSON text, and its length is announced rightly), `html`;
  `text_numbers` (numbers and booleans inside request_body are text), `no_body` (request_body null), `no_url`
  (generation_url null), `no_time` (no model_created), `no_id` (no request_id). A call about one request is answered
  likewise: `{"data": {...}}`, in `bare` the row alone, in `items` and `requests` a list of one.
- `on`: the calls that get it: `submit` (POST v2), `run` (POST v1), `status`, `result`, `download`, `history`,
  `credits`, `upload`. Default: `["submit", "run"]`.
- `when`, of faults in place of the answer and of `hang`: `before` (default) or `after` the work was accepted (v2), done
  (v1), or the answer of any other call made up; a `hang` may also be `during` the work: the call is accepted, and its
  job takes `seconds` longer. A v1 call that is answered with another status than 200 is never charged; one whose
  connection is lost is.
- `model`, `prompt_contains`: only requests with this model, or this text in the prompt.
- `window`: `[START, END]`, only so many seconds after the first call of all: an outage or a storm.
- `first`: the first N matching calls; `every`: each Nth; `share`: this share of them, spread evenly by `seed`;
  `times`: at most so often. Without any of these, every matching call.
- `seconds`: how long `hang` (default: 3600) and `slow_body` (default: 1) last; `text`: the error text.

Where several rules match a call, the first one applies.
"""

import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from prefect_imagegen.core.errors import RefusedError

HANG_S = 3600.0
FaultName = Literal[
    "status",
    "disconnect",
    "hang",
    "slow_body",
    "truncated_body",
    "wrong_length",
    "html",
    "json_error",
    "wrong_content_type",
    "redirect",
    "empty_body",
    "junk",
    "other_format",
    "black_image",
    "failed",
    "unknown_state",
    "expired_record",
    "history_shape",
    "clamp_pages",
    "small_pages",
]
Shape = Literal[
    "items",
    "requests",
    "bare",
    "error",
    "empty_body",
    "cut",
    "html",
    "text_numbers",
    "no_body",
    "no_url",
    "no_time",
    "no_id",
]
Call = Literal["submit", "run", "status", "result", "download", "history", "credits", "upload"]
_ONLY_ON: dict[str, set[Call]] = {
    "history_shape": {"history"},
    "clamp_pages": {"history"},
    "small_pages": {"history"},
    "other_format": {"run", "download"},
}
_FIELD_OF: dict[str, set[str]] = {
    "shape": {"history_shape"},
    "per_page": {"small_pages", "clamp_pages"},
    "body": {"status", "json_error"},
}


class Fault(BaseModel):
    """One rule of the script; the module's docstring explains the fields."""

    model_config = ConfigDict(extra="forbid")

    fault: FaultName
    status: int = Field(503, ge=200, le=599)
    on: list[Call] = ["submit", "run"]
    when: Literal["before", "during", "after"] = "before"
    model: str | None = None
    prompt_contains: str | None = None
    window: tuple[float, float] | None = None
    first: int | None = Field(None, ge=1)
    every: int | None = Field(None, ge=1)
    share: float | None = Field(None, ge=0, le=1)
    seed: int = 0
    times: int | None = Field(None, ge=1)
    seconds: float | None = Field(None, ge=0)
    text: str = "injected by the fault script"
    body: dict[str, Any] | None = None
    shape: Shape | None = None
    per_page: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Refuse combinations of fields, calls and faults that could never apply."""
        only = _ONLY_ON.get(self.fault)
        if only == {"history"} and "on" not in self.model_fields_set:
            self.on = ["history"]
        if only is not None and not only >= set(self.on):
            raise ValueError(f"{self.fault} strikes only {' and '.join(sorted(only))}")
        for name, faults in _FIELD_OF.items():
            if getattr(self, name) is not None and self.fault not in faults:
                raise ValueError(f"{name} goes with {' and '.join(sorted(faults))} only")
        if (self.fault, self.shape) == ("history_shape", None):
            raise ValueError("history_shape needs a shape")
        if (self.fault, self.per_page) == ("small_pages", None):
            raise ValueError("small_pages needs per_page")
        return self

    @property
    def replaced_status(self) -> int | None:
        """The HTTP status of the answer in place of the call's own; None if that is not replaced."""
        if self.fault in ("json_error", "html"):
            return self.status if "status" in self.model_fields_set else 200
        return {"status": self.status, "redirect": 302}.get(self.fault)

    @property
    def content(self) -> dict[str, Any]:
        """The JSON of the answer in place of the call's own."""
        return {"error": self.text} if self.body is None else self.body

    def applies(self, count: int, injected: int) -> bool:
        """Whether the rule applies to its matching call number `count` (from 1), after `injected` earlier faults."""
        if self.times is not None and injected >= self.times:
            return False
        if self.first is not None:
            return count <= self.first
        if self.every is not None:
            return count % self.every == 0
        if self.share is not None:
            return random.Random(f"{self.seed}:{count}").random() < self.share  # noqa: S311 - a repeatable spread
        return True


class FaultScript(BaseModel):
    """A list of rules, with counts of how many calls each has matched and been applied to."""

    model_config = ConfigDict(extra="forbid")

    faults: list[Fault] = []
    _matched: Counter[int] = PrivateAttr(default_factory=Counter)
    _injected: Counter[int] = PrivateAttr(default_factory=Counter)
    _first_call_at: float | None = PrivateAttr(default=None)

    def pick(self, call: Call, model: str = "", prompt: str = "") -> Fault | None:
        """The fault to inject into this call, if any; counts the call for all rules that match it."""
        picked = None
        self._first_call_at = time.monotonic() if self._first_call_at is None else self._first_call_at
        elapsed = time.monotonic() - self._first_call_at
        for number, rule in enumerate(self.faults):
            if call not in rule.on or (rule.model and rule.model != model):
                continue
            if rule.prompt_contains and rule.prompt_contains not in prompt:
                continue
            if rule.window and not rule.window[0] <= elapsed < rule.window[1]:
                continue
            self._matched[number] += 1
            if picked is None and rule.applies(self._matched[number], self._injected[number]):
                self._injected[number] += 1
                picked = rule
        return picked


def load_faults(path: str) -> FaultScript:
    """Read a fault script. Raises RefusedError, which names the file and what is wrong in it."""
    try:
        return FaultScript.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise RefusedError("faults_unreadable", f"The fault script {path} cannot be read: {error}.") from error
    except json.JSONDecodeError as error:
        raise RefusedError("faults_invalid", f"The fault script {path} is no JSON: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RefusedError("faults_invalid", f"The fault script {path} is wrong at {where}: {first['msg']}.") from error
