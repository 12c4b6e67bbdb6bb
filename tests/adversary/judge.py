"""What a played scenario must not have done. Each finding names the rule by a short word, then the facts."""

import json
from collections import Counter
from io import BytesIO

from pyarrow import parquet

from prefect_imagegen.core import layout
from prefect_imagegen.core.policy.outcomes import is_permanent
from prefect_imagegen.core.request.request import GenerationRequest

from .world.api import FILE_LIVES_S, Call, Job
from .world.images import png
from .world.world import Played, World

OVER_DEADLINE_S = 25.0 + 1.5
"""A run ends so many seconds after --deadline since a row last moved, at the latest: it is watched every second."""
SLOT_S = 60.0
"""A row that releases its slot has moved, which cannot be seen from outside the run: it may take so many seconds."""
_STATES = frozenset({"generated", "reused", "failed", "held", "not_run"})
FOR_GOOD = frozenset({400, 406, 409, 411, 413, 415, 418, 422, 451})


def judge(world: World) -> list[str]:
    """All findings about a world; empty if every rule held."""
    findings = [text for run in world.runs for text in run.broke]
    if findings:
        return findings
    for request in world.requests:
        findings += _money(world, request.prompt, request.key)
        findings += _image(world, request.prompt, request.key, request.extension)
    return findings + findings_of_any_seller(world)


def findings_of_any_seller(world: World) -> list[str]:
    """What holds whatever the seller can do, beside what is billed and what becomes of the images."""
    findings = []
    for request in world.requests:
        findings += _resent(world, request.prompt, request.key)
        findings += _counted_once(world, request)
    for run in world.runs:
        findings += _ends(world, run)
        findings += _states(world, run)
        findings += _cap(world, run)
        findings += _dropped(world, run)
    return findings + _abandoned(world) + _unsafe(world) + _secrets(world) + _key_shown(world)


def jobs_of(world: World, prompt: str) -> list[Job]:
    return [job for job in world.service.jobs.values() if job.prompt == prompt and not job.foreign]


def calls_of(world: World, prompt: str) -> list[Call]:
    return [call for call in world.service.calls if call.prompt == prompt]


def is_billed(job: Job) -> bool:
    return job.fails_with is None


def _money(world: World, prompt: str, key: bytes) -> list[str]:
    """(a) Nothing is billed twice, but for accepted POSTs that were answered 5xx, or sent again by the user's wish."""
    billed = [call for call in calls_of(world, prompt) if call.job is not None and is_billed(call.job)]
    if len(billed) < 2:
        return []
    guesses = sum(call.answer == "5xx" for call in billed[:-1])
    if world.scenario.options.on_unknown == "retry-once":
        guesses += sum(call.answer in ("none", "2xx", "3xx") for call in billed[:-1])
    extra = len(billed) - 1
    answers = ", ".join(f"run {call.run}: {call.answer}" for call in billed)
    if extra > guesses:
        return [f"billed-twice: {prompt} was billed {len(billed)} times ({answers})"]
    results = [run.ended.results.get(key) for run in world.runs if run.ended]
    if all(run.ended and not run.ended.refused for run in world.runs):
        counted = sum(result.maybe_paid for result in results if result)
        if extra > counted:
            return [f"uncounted: {prompt} was billed {len(billed)} times, and maybe_paid says {counted} ({answers})"]
    return []


def _image(world: World, prompt: str, key: bytes, extension: str) -> list[str]:
    """(b, e) In the end every row has its image, or a reason that the truth justifies."""
    last = world.runs[-1]
    assert last.ended is not None
    stored = world.objects.contents.get(layout.image(key.hex(), extension))
    account = dict(world.scenario.keys)[last.plan.key]
    jobs = jobs_of(world, prompt)
    if layout.image(key.hex(), extension) in world.damaged:
        return []
    if stored is not None:
        mine = [job for job in jobs if stored[0] in [png(path) for path in job.outputs]]
        lost = [path for job in mine for path in job.outputs if not is_kept(world, key, extension, path)]
        return [f"lost-outputs: {prompt}: paid outputs {lost} are not in the store"] if lost else []
    result = last.ended.results.get(key)
    outcome = f"{result.status} ({result.error_kind}: {result.error_message})" if result else "no result"
    by_wish = ("none", "2xx", "3xx") if world.scenario.options.on_unknown == "retry-once" else ()
    guessed = [call.job for call in calls_of(world, prompt) if call.answer in ("5xx", *by_wish)]
    there = [job for job in jobs if job.account == account and is_billed(job) and job not in guessed]
    alive = [job for job in there if last.began < job.ready_at + FILE_LIVES_S]
    justified = _justified(world, prompt, jobs, account) or _cannot_be_linked(world, prompt)
    if alive and not (justified and result and result.status == "held"):
        return [f"given-up: {prompt} was paid ({alive[0].request_id}), can be fetched, and ends {outcome}"]
    # A call that was answered with an error, and billed all the same, may show only after its file is gone.
    gone = [job for job in guessed if job is not None and is_billed(job) and last.began >= job.ready_at + FILE_LIVES_S]
    is_lost = bool(gone) and result is not None and result.error_kind == "output_lost"
    if not justified and not there and not is_lost:
        return [f"undelivered: {prompt} ends {outcome} in good times"]
    return []


def is_kept(world: World, key: bytes, extension: str, path: str) -> bool:
    """Whether an output is in the store, as the image of a row or beside it."""
    folder = f"images/{key.hex()[:2]}/{key.hex()}"
    return any(name.startswith(folder) and stored[0] == png(path) for name, stored in world.objects.contents.items())


def _justified(world: World, prompt: str, jobs: list[Job], account: str) -> bool:
    """Whether a row may be without an image in the end."""
    refused = any(call.answer == "4xx" and call.status in FOR_GOOD for call in calls_of(world, prompt))
    failed = any(job.fails_with is not None for job in jobs)
    accounts = dict(world.scenario.keys)
    others = any(accounts[run.plan.key] != account for run in claimants_of(world, prompt))
    own_wish = world.scenario.options.on_unknown != "reconcile"
    return refused or failed or others or own_wish or world.runs[-1].ended is None


def claimants_of(world: World, prompt: str) -> list[Played]:
    """The runs that claimed a row: their calls may have been sent, whether they arrived or not."""
    key = next(request.key.hex() for request in world.requests if request.prompt == prompt)
    paths = [path for path in world.objects.contents if path.startswith(layout.claims_of(key))]
    claims = [json.loads(world.objects.contents[path][0]) for path in paths if not path.endswith(".id.json")]
    return [run for run in world.runs if any(claim["run_id"] == f"run-{run.number}" for claim in claims)]


def _cannot_be_linked(world: World, prompt: str) -> bool:
    """Whether another API key sent the row than the last run has, and no call in the store links the two keys.

    Then the call's account is unknown: the row is held until the old key is used, or a person decides.
    """
    last = world.runs[-1]
    senders = {run.plan.key for run in claimants_of(world, prompt)} - {last.plan.key}
    sent = [call for call in world.service.calls if world.runs[call.run - 1].plan.key in senders]
    ids = {call.job.request_id for call in sent if call.job is not None}
    if not senders:
        return False
    for path, (data, _, _) in world.objects.contents.items():
        if path.startswith("ledger/segments/") and f"-nonce{last.number}-" not in path:
            events = parquet.read_table(BytesIO(data), columns=["request_id"])
            if not ids.isdisjoint(events["request_id"].to_pylist()):
                return False
    return True


def _resent(world: World, prompt: str, key: bytes) -> list[str]:
    """A row that failed for good is not sent again by other runs."""
    calls = calls_of(world, prompt)
    for run in world.runs:
        result = run.ended.results.get(key) if run.ended else None
        if result is None or result.status != "failed" or not is_permanent(result.error_kind or ""):
            continue
        own = [call for call in calls if call.run == run.number]
        # A run that only read another run's failure knows of it for certain at its end.
        since = own[-1].at if own and _ends_for_good(own[-1]) else run.over
        later = [call for call in calls if call.run != run.number and call.at > since]
        if later:
            story = f"failed for good in run {run.number} ({result.error_kind})"
            return [f"resent: {prompt} {story}, and was sent in run {later[0].run}"]
    return []


def _ends_for_good(call: Call) -> bool:
    refused = call.answer == "4xx" and call.status in FOR_GOOD
    # Whether a call that was answered 5xx is billed is a guess: it may be sent again.
    return refused or (call.answer != "5xx" and call.job is not None and call.job.fails_with is not None)


def _ends(world: World, run: Played) -> list[str]:
    """(d) A run ends soon after the last row moved."""
    latest = run.moved + world.scenario.options.deadline + SLOT_S + OVER_DEADLINE_S
    findings = []
    if run.stopped_at is not None and run.over > run.stopped_at + OVER_DEADLINE_S:
        findings.append(f"slow-stop: run {run.number} ended {run.over - run.stopped_at:.0f} s after SIGTERM")
    if run.over > latest:
        findings.append(f"late: run {run.number} ended {run.over - run.moved:.0f} s after a row last moved")
    if run.ended and run.ended.stop_reason == "store":
        hiccups = f"after {len(run.store.failures)} hiccups of the store"
        findings.append(f"store-stop: run {run.number} stopped {hiccups}: {run.ended.stop_message}")
    return findings


def _states(world: World, run: Played) -> list[str]:
    """(c) Every row ends in one state, with a reason where it has no image."""
    if run.ended is None or run.ended.refused:
        return []
    findings = []
    for request in world.requests:
        result = run.ended.results.get(request.key)
        if result is None or result.status not in _STATES:
            findings.append(f"states: run {run.number}: {request.prompt} ends {result!r}")
        elif result.status in ("failed", "held", "not_run") and not (result.error_kind and result.error_message):
            findings.append(f"states: run {run.number}: {request.prompt} is {result.status} without a reason")
        elif result.status in ("generated", "reused") and not _has_image(world, request):
            findings.append(f"states: run {run.number}: {request.prompt} is {result.status} without an image")
    return findings


def _has_image(world: World, request: GenerationRequest) -> bool:
    return layout.image(request.key.hex(), request.extension) in world.objects.contents


def _cap(world: World, run: Played) -> list[str]:
    """A run spends no more than its cap; and once costs are known, or assumed, it is not held to two calls for ever."""
    if run.plan.cap is None:
        return []
    jobs = [call.job for call in world.service.calls if call.run == run.number and call.job and is_billed(call.job)]
    spent = sum(job.cost for job in jobs)
    if spent > run.plan.cap + 1e-9:
        return [f"over-cap: run {run.number} spent {spent:.2f} of {run.plan.cap:.2f}"]
    later = jobs[8:] if run.plan.cap > 10 * spent and not world.scenario.troubles else []
    most = max(
        (sum(other.accepted_at <= job.accepted_at < other.ready_at for other in jobs) for job in later), default=9
    )
    if most <= 2 < world.scenario.options.in_flight:
        return [f"throttled: run {run.number} never has more than {most} calls out"]
    return []


def _dropped(world: World, run: Played) -> list[str]:
    """A run that has begun to store a paid image has stored it when it ends, if there was time for it."""
    if run.ended is None or run.ended.stop_reason == "store":
        return []
    if run.stopped_at is not None and run.over > run.stopped_at + OVER_DEADLINE_S - 3.0:
        return []
    stored = world.objects.contents
    lost = [path for path in sorted(run.store.begun) if path not in stored or stored[path][1] > run.over]
    return [f"dropped: run {run.number} began to store {path}, and ended" for path in lost]


def _counted_once(world: World, request: GenerationRequest) -> list[str]:
    """A row is `generated` in one run; in all others it is reused.

    But two runs at once may fetch what an earlier one left, and where lists lag nobody knows of the latest events.
    """
    if layout.image(request.key.hex(), request.extension) in world.damaged or world.scenario.list_lag:
        return []
    ended = [run for run in world.runs if run.ended and run.ended.stop_reason != "store"]
    results = [(run.number, run.ended.results.get(request.key)) for run in ended if run.ended]
    made = [(number, result) for number, result in results if result and result.status == "generated"]
    if len(made) < 2 or not any(result.attempts for _, result in made):
        return []
    return [f"counted-twice: {request.prompt} is generated in runs {[number for number, _ in made]}"]


def _abandoned(world: World) -> list[str]:
    """A paid POST is given up after the deadline or when the run stops, never after a time learned from calls."""
    findings = []
    for call in world.service.calls:
        run = world.runs[call.run - 1]
        if call.abandoned_at is None or run.stopped_at is not None or run.ended is None or run.ended.stop_reason:
            continue
        waited = call.abandoned_at - call.at
        if call.status < 300 and call.whole and waited < world.scenario.options.deadline - 1.0 and call.answer == "2xx":
            findings.append(f"let-go: a POST of {call.prompt} was let go after {waited:.0f} s")
    return findings[:1]


def _unsafe(world: World) -> list[str]:
    """A claim is durable before each POST, and the request_id before the first poll."""
    polls = [f"unsafe-poll: {request_id} was polled before the store had it" for request_id in world.unsafe_polls]
    posts = [f"unclaimed: a POST of {prompt} arrived before its claim was stored" for prompt in world.unclaimed_posts]
    return polls[:1] + posts[:1]


def _key_shown(world: World) -> list[str]:
    """An API key goes to the seller's own hosts only."""
    return [f"key-shown: an API key went to {stranger}" for stranger in world.strangers][:1]


def _secrets(world: World) -> list[str]:
    """(f) No API key is in a result or in the store."""
    keys = [key for key, _ in world.scenario.keys]
    texts = Counter(str(run.ended) for run in world.runs if run.ended)
    for path, (data, _, _) in world.objects.contents.items():
        if not path.endswith((".png", ".parquet")):
            texts[data.decode("utf-8", "replace")] += 1
    return [f"secret: a key is told in {text[:80]}" for text in texts for key in keys if key in text][:1]
