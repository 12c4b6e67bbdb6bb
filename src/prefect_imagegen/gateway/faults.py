"""The fault script: how a gateway is told to misbehave, so that users can see what their flows do about it.

A script is JSON: `{"faults": [RULE, ...]}`. A rule names its `fault` and where it strikes:

- `fault`: `status` (with `status`: 401, 402, 403, 404, 410, 429, 500, 502, 503, 504, ...), `disconnect`, `hang`,
  `slow_body`, `truncated_body`, `wrong_length` (announces more than comes), `html`, `json_error`,
  `wrong_content_type`, `redirect`; or about the job itself:
  `black_image`, `failed`, `unknown_state`, `expired_record`.
  A `failed` job answers with 422, or with `status` 200 where that is given.
- `on`: the calls that it strikes: `submit` (POST v2), `run` (POST v1), `status`, `result`, `download`, `history`,
  `credits`, `upload`. Default: `["submit", "run"]`.
- `when`: `before` (default) or `after` the work was accepted (v2) or done (v1), for `status`, `disconnect`, `hang`;
  a `hang` may also be `during` the work: the call is accepted, and its job takes `seconds` longer. A v1 call that is
  answered with another status than 200 is never charged; one whose connection is lost is.
- `model`, `prompt_contains`: strike only such requests.
- `window`: `[START, END]`, strike only so many seconds after the first call of all; an outage or a storm.
- `first`: the first N matching calls; `every`: each Nth; `share`: this share of them, spread evenly by `seed`;
  `times`: at most so often. Without any of these, every matching call.
- `seconds`: how long `hang` (default: 3600) and `slow_body` (default: 1) last; `text`: the error text.

The first rule that strikes wins.
"""

import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

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
    "black_image",
    "failed",
    "unknown_state",
    "expired_record",
]
Call = Literal["submit", "run", "status", "result", "download", "history", "credits", "upload"]


class Fault(BaseModel):
    """One rule of the script; the module's text explains the fields."""

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

    def strikes(self, count: int, struck: int) -> bool:
        """Whether the rule strikes its matching call number `count` (from 1), having struck so often before."""
        if self.times is not None and struck >= self.times:
            return False
        if self.first is not None:
            return count <= self.first
        if self.every is not None:
            return count % self.every == 0
        if self.share is not None:
            return random.Random(f"{self.seed}:{count}").random() < self.share  # noqa: S311 - a repeatable spread
        return True


class FaultScript(BaseModel):
    """A list of rules, and how often each has been asked and has struck."""

    model_config = ConfigDict(extra="forbid")

    faults: list[Fault] = []
    _asked: Counter[int] = PrivateAttr(default_factory=Counter)
    _struck: Counter[int] = PrivateAttr(default_factory=Counter)
    _began: float | None = PrivateAttr(default=None)

    def pick(self, call: Call, model: str = "", prompt: str = "") -> Fault | None:
        """The fault that strikes this call, if any."""
        found = None
        self._began = time.monotonic() if self._began is None else self._began
        elapsed = time.monotonic() - self._began
        for number, rule in enumerate(self.faults):
            if call not in rule.on or (rule.model and rule.model != model):
                continue
            if rule.prompt_contains and rule.prompt_contains not in prompt:
                continue
            if rule.window and not rule.window[0] <= elapsed < rule.window[1]:
                continue
            self._asked[number] += 1
            if found is None and rule.strikes(self._asked[number], self._struck[number]):
                self._struck[number] += 1
                found = rule
        return found


def load_faults(path: str) -> FaultScript:
    """Read a fault script. Raises RefusedError that names the file and what is wrong in it."""
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
