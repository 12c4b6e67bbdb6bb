"""What a scenario at a seller without a request history must not have done: the truth is with the service."""

import json
from dataclasses import dataclass, field
from io import BytesIO
from itertools import pairwise

from pyarrow import parquet

from prefect_imagegen.core import layout
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.core.results import RequestResult

from ..judge import FOR_GOOD, calls_of, claimants_of, findings_of_any_seller, is_billed, is_kept, jobs_of
from ..world.api import FILE_LIVES_S, Call, Job
from ..world.images import png
from ..world.world import Played, World

_LOST = ("none", "3xx", "5xx")
"""Answers after which nobody knows whether a call was taken: none at all, a redirect, an error of the server."""


@dataclass(slots=True)
class _Row:
    """What the store and the service have of one request."""

    request: GenerationRequest
    calls: list[Call]
    jobs: list[Job]
    claims: dict[int, str]
    """The runs that made its claims, by the number of the claim."""
    ended: set[int] = field(default_factory=set)
    """The numbers of the attempts that the ledger has an end of."""
    freed: list[float] = field(default_factory=list)
    """When a person gave it free."""

    @property
    def prompt(self) -> str:
        return self.request.prompt


def judge(world: World) -> list[str]:
    """All findings about a world; empty if every rule held."""
    findings = [text for run in world.runs for text in run.broke]
    if findings:
        return findings
    ends = _ends_in_the_ledger(world)
    for request in world.requests:
        row = _row(world, request, ends)
        findings += _bought_again(world, row)
        findings += _unanswered(world, row)
        findings += _end(world, row)
        findings += _unexplained(world, row)
    return findings + findings_of_any_seller(world)


def _row(world: World, request: GenerationRequest, ends: set[str]) -> _Row:
    key = request.key.hex()
    claims = {
        int(path.rsplit("/", 1)[1].removesuffix(".json")): str(json.loads(data)["run_id"])
        for path, (data, _, _) in world.objects.contents.items()
        if path.startswith(layout.claims_of(key)) and not path.endswith(".id.json")
    }
    row = _Row(request, calls_of(world, request.prompt), jobs_of(world, request.prompt), claims)
    row.ended = {number for number in claims if f"{key}-{number}" in ends}
    row.freed = [at for freed, at in world.freed if freed == request.key]
    return row


def _ends_in_the_ledger(world: World) -> set[str]:
    """The attempts that failed or delivered, as the ledger has it."""
    ends = set()
    for path, (data, _, _) in world.objects.contents.items():
        if path.startswith(layout.SEGMENTS):
            events = parquet.read_table(BytesIO(data), columns=["attempt_id", "type"]).to_pylist()
            ends |= {event["attempt_id"] for event in events if event["type"] in ("failed", "delivered")}
    return ends


def _is_closed(world: World, call: Call) -> bool:
    """Whether the client knew that a call had cost nothing: it was refused, or its job was told to have failed."""
    is_failed = call.job is not None and not is_billed(call.job) and call.job.request_id in world.objects.request_ids
    return call.answer == "4xx" or is_failed


def _bought_again(world: World, row: _Row) -> list[str]:
    """Nothing is billed twice, and nothing is sent again that may have been taken; unless a person gave it free."""
    billed = [call for call in row.calls if call.job is not None and is_billed(call.job)]
    if len(billed) > 1 + len(row.freed):
        answers = ", ".join(f"run {call.run}: {call.answer}" for call in billed)
        return [f"billed-twice: {row.prompt} was billed {len(billed)} times ({answers}), freed {len(row.freed)} times"]
    for call, after in pairwise(row.calls):
        is_free = any(call.at <= at <= after.at for at in row.freed)
        if not is_free and not _is_closed(world, call):
            story = f"answered {call.answer} {call.status} in run {call.run}"
            return [f"posted-again: {row.prompt} was {story}, and was sent again in run {after.run}"]
    for run in world.runs:
        result, own = _result(run, row), [call for call in row.calls if call.run == run.number]
        # A call that is refused while the run ends, after a long wait, is told as one without an answer.
        is_refused = bool(own) and _is_closed(world, own[-1])
        if result is None or result.error_kind != "no_history" or is_refused:
            continue
        later = [call for call in row.calls if call.at > run.over and not any(run.over <= at for at in row.freed)]
        if later:
            return [f"posted-again: {row.prompt} was held in run {run.number}, and was sent in run {later[0].run}"]
    return []


def _unanswered(world: World, row: _Row) -> list[str]:
    """A row whose call got no answer ends held, with the kind that says that nobody can look it up."""
    for run in world.runs:
        own = [call for call in row.calls if call.run == run.number]
        result = _result(run, row)
        if not own or result is None:
            continue
        is_lost = own[-1].answer in _LOST or own[-1].abandoned_at is not None
        if is_lost and (result.status, result.error_kind) != ("held", "no_history"):
            return [f"untold: {row.prompt} got no answer in run {run.number}, and ends {_said(result)}"]
    for run in world.runs:
        result = _result(run, row)
        if result is not None and result.error_kind in ("unknown", "not_accepted", "sent_again", "outcome_unknown"):
            return [f"untold: {row.prompt} ends {_said(result)} in run {run.number}, where nothing can be looked up"]
    return []


def _end(world: World, row: _Row) -> list[str]:
    """In good times what has an id in the store is fetched; all else has a reason that the truth justifies."""
    last, request = world.runs[-1], row.request
    path = layout.image(request.key.hex(), request.extension)
    stored = world.objects.contents.get(path)
    if stored is not None:
        mine = [job for job in row.jobs if stored[0] in [png(output) for output in job.outputs]]
        outputs = [output for job in mine for output in job.outputs]
        lost = [output for output in outputs if not is_kept(world, request.key, request.extension, output)]
        return [f"lost-outputs: {row.prompt}: paid outputs {lost} are not in the store"] if lost else []
    result = _result(last, row)
    if result is None:
        return []
    account = dict(world.scenario.keys)[last.plan.key]
    known = [job for job in row.jobs if is_billed(job) and job.request_id in world.objects.request_ids]
    alive = [job for job in known if job.account == account and last.began < job.ready_at + FILE_LIVES_S]
    if alive:
        return [f"given-up: {row.prompt} was paid ({alive[0].request_id}), can be fetched, and ends {_said(result)}"]
    if not _is_justified(world, row, result):
        return [f"undelivered: {row.prompt} ends {_said(result)} in good times"]
    return []


def _is_justified(world: World, row: _Row, result: RequestResult) -> bool:
    """Whether a row may end without an image as it does, after a run in good times."""
    last, kind = world.runs[-1], result.error_kind
    others = {run.plan.key for run in claimants_of(world, row.prompt)} - {last.plan.key}
    if kind == "no_history":
        # Some claim has no end: the call was lost, or the process died before it was sent or its id was stored.
        return bool(set(row.claims) - row.ended)
    if kind == "other_account":
        return bool(others)
    if kind in ("submitted", "output_lost"):
        # Of a job whose record is gone nobody can know that it had failed.
        named = [job for job in row.jobs if job.request_id in world.objects.request_ids]
        return bool(named) and all(last.began >= job.ready_at + FILE_LIVES_S for job in named)
    refused = any(call.answer == "4xx" and call.status in FOR_GOOD for call in row.calls)
    failed = any(not is_billed(job) for job in row.jobs)
    return result.status == "failed" and (refused or failed)


def _unexplained(world: World, row: _Row) -> list[str]:
    """Every claim has an end in the ledger, or is the one for which the row is held.

    What a run that was killed knew of its claims is gone; that it made a further one says that they had ended.
    """
    last = world.runs[-1]
    result = _result(last, row)
    if last.ended is None or last.ended.refused or not row.claims:
        return []
    highest, is_held = max(row.claims), result is not None and result.status == "held"
    forgetful = {f"run-{run.number}" for run in world.runs if run.ended is None or run.ended.stop_reason == "store"}
    followed = {number - 1 for number, run_id in row.claims.items() if run_id in forgetful}
    open_claims = {
        number
        for number in row.claims
        if number not in row.ended and not (is_held if number == highest else number in followed)
    }
    return [f"unexplained: claims {sorted(open_claims)} of {row.prompt}, which ends {_said(result)}"] * bool(
        open_claims
    )


def _result(run: Played, row: _Row) -> RequestResult | None:
    return run.ended.results.get(row.request.key) if run.ended and not run.ended.refused else None


def _said(result: RequestResult | None) -> str:
    return f"{result.status} ({result.error_kind}: {result.error_message})" if result else "without a result"
