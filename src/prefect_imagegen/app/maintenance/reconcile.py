"""`reconcile`: compare the ledger with the account's request history, call by call, in US dollars."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

import pyarrow.compute as pc

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.resolve import resolve_provider
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.maintenance.access import existing_store, is_without_account, paid_provider
from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import ProviderError, RefusedError
from prefect_imagegen.core.ledger.attempts import Attempts
from prefect_imagegen.core.ledger.events import RANK
from prefect_imagegen.core.policy.history_lookup import claim_form, same_call
from prefect_imagegen.core.request.request import KEY_BYTES, canonical_json
from prefect_imagegen.ports import HistoryRecord
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store.ledger.files import json_object
from prefect_imagegen.store.ledger.reading import event_tables
from prefect_imagegen.store.object_store import FsspecObjectStore

MAX_DAYS = 31
_CENT = 1e-6

DifferenceKind = Literal[
    "not_in_ledger", "paid_twice", "not_in_history", "cost_differs", "not_fetched", "failed_here", "failed_there"
]
MEANINGS: dict[DifferenceKind, str] = {
    "not_in_ledger": "billed, and unknown to this store: another store or program on the account, or a lost call",
    "paid_twice": "billed again for a body that this store already has a billed call for",
    "not_in_history": "the ledger has a call that the history does not show (it lags by up to two hours)",
    "cost_differs": "the ledger and the history name different costs",
    "not_fetched": "billed, and its image is not in the store yet: run the same command again",
    "failed_here": "billed, and its image could not be fetched or was no image: ask the API's support",
    "failed_there": "the history says FAILED, the ledger has its image",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference about one call. `usd`: its amount, positive if the account paid more than the ledger says."""

    kind: DifferenceKind
    request_id: str
    usd: float
    ledger_usd: float | None = None
    history_usd: float | None = None


@dataclass(slots=True)
class ReconcileReport:
    """The result of a comparison over a window of days (`start` and `end` included). Money in US dollars."""

    store: str
    start: str
    end: str
    history_calls: int = 0
    history_usd: float = 0.0
    ledger_calls: int = 0
    ledger_usd: float = 0.0
    differences: list[Difference] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dict, for JSON."""
        return asdict(self)


@dataclass(slots=True)
class _Entry:
    """What the ledger says of one call: the highest rank of its events, its cost in US dollars, its first time."""

    rank: int = -1
    cost: float | None = None
    time: datetime | None = None


async def reconcile(
    store: StoreSettings,
    provider: ProviderSettings,
    options: RunOptions,
    *,
    start: date | None = None,
    end: date | None = None,
) -> ReconcileReport:
    """Compare all calls of the days `start` to `end` (default: the last seven days). Raises RefusedError."""
    end = end or datetime.now(UTC).date()
    start = start or end - timedelta(days=7)
    if not 0 <= (end - start).days <= MAX_DAYS:
        raise RefusedError(
            "bad_option",
            f"{start} to {end} is no window of up to {MAX_DAYS} days.",
            remedy="Ask for a shorter one; the request history answers no longer ones.",
        )
    resolved = resolve_provider(provider, options)
    async with existing_store(store) as image_store:
        if await is_without_account(image_store, resolved):
            raise RefusedError(
                "no_account",
                f"{image_store.url} is a sandbox store: nothing was paid for it, and no account keeps its calls.",
                remedy="There is nothing to compare; name a gateway of your own with --base-url.",
            )
        attempts = Attempts()
        ledger = await _ledger_calls(image_store, attempts)
        report = ReconcileReport(image_store.url, start.isoformat(), end.isoformat())
        history = await _history(resolved, options.deadline, start, end)
        open_bodies: dict[str, list[dict[str, Any]]] = {}
        if any(record.request_id not in ledger for record in history):
            # A call is in the ledger only with the next segment; its claim and id are stored before that.
            claimed, open_bodies = await _claims(image_store, attempts)
            ledger = claimed | ledger
    _compare(report, ledger, open_bodies, history, start, end)
    return report


async def _history(resolved: ProviderSettings, deadline: float, start: date, end: date) -> list[HistoryRecord]:
    async with paid_provider(resolved, deadline) as provider:
        account = provider.account
        if account is None or not provider.abilities.history:
            raise RefusedError(
                "no_history", f"{provider.name} keeps no request history.", remedy="Compare with its own bills."
            )
        try:
            return list(await account.records(start, end))
        except ProviderError as error:
            raise RefusedError(
                "history_unreadable",
                f"The request history of {provider.endpoint} cannot be read: {error.message}.",
                remedy="Check the key and --base-url, or ask for a shorter window.",
            ) from error


async def _ledger_calls(store: FsspecObjectStore, attempts: Attempts) -> dict[str, _Entry]:
    """The ledger's entry of every call with a request_id; all events are added to `attempts` as well."""
    entries: dict[str, _Entry] = {}
    async for table in event_tables(store):
        attempts.add(table)
        known = table.filter(pc.is_valid(table["request_id"]))
        columns = ("type", "request_id", "cost_usd", "time")
        for kind, request_id, cost, time in zip(*(known[name].to_pylist() for name in columns), strict=True):
            entry = entries.setdefault(request_id, _Entry())
            entry.rank = max(entry.rank, RANK[kind])
            entry.cost = cost if cost is not None else entry.cost
            entry.time = min(time, entry.time) if entry.time else time
    return entries


async def _claims(
    store: FsspecObjectStore, attempts: Attempts
) -> tuple[dict[str, _Entry], dict[str, list[dict[str, Any]]]]:
    """Calls of requests without an image, from their claims.

    Returns entries by request_id, and the bodies, by prompt, of claims that have no request_id.
    """
    delivered = set(attempts.delivered_keys.to_pylist())
    calls: dict[str, _Entry] = {}
    bodies: dict[str, list[dict[str, Any]]] = {}
    modified_times = {info.path: info.modified for info in await store.list(layout.CLAIMS)}
    for path, modified in modified_times.items():
        folder, name = path.rsplit("/", 1)
        stem, kind = name.split(".", 1)
        if bytes.fromhex(folder[-2 * KEY_BYTES :]) in delivered:
            continue
        content: dict[str, Any] = json_object(path, await store.get(path))
        if kind == "id.json":
            calls[str(content.get("request_id"))] = _Entry(RANK["submitted"], None, modified)
        elif f"{folder}/{stem}.id.json" not in modified_times:
            body = content.get("body") or {}
            bodies.setdefault(str(body.get("prompt")), []).append(body)
    return calls, bodies


def _compare(
    report: ReconcileReport,
    ledger: dict[str, _Entry],
    open_bodies: dict[str, list[dict[str, Any]]],
    history: Iterable[HistoryRecord],
    start: date,
    end: date,
) -> None:
    records = {record.request_id: record for record in history}
    bodies: dict[bytes, str] = {}
    for request_id in ledger:
        record = records.get(request_id)
        if record is not None and record.status == "COMPLETED" and record.body is not None:
            bodies.setdefault(_body(record), request_id)
    for record in records.values():
        paid = record.cost_usd or 0.0 if record.status == "COMPLETED" else 0.0
        report.history_calls += 1
        report.history_usd += paid
        entry = ledger.get(record.request_id)
        if entry is None and _is_claimed(record, open_bodies):
            entry = _Entry(RANK["claimed"])
        _compare_call(report, record, paid, entry, bodies)
    for request_id, entry in ledger.items():
        if entry.time is None or not start <= entry.time.date() <= end:
            continue
        report.ledger_calls += 1
        report.ledger_usd += entry.cost or 0.0
        if request_id not in records:
            cost = entry.cost
            report.differences.append(Difference("not_in_history", request_id, -(cost or 0.0), cost, None))
    report.differences.sort(key=lambda difference: (difference.kind, -abs(difference.usd)))


def _compare_call(
    report: ReconcileReport, record: HistoryRecord, paid: float, entry: _Entry | None, bodies: dict[bytes, str]
) -> None:
    add, name, theirs = report.differences.append, record.request_id, record.cost_usd
    if entry is None:
        if paid:
            twice = record.body is not None and _body(record) in bodies
            add(Difference("paid_twice" if twice else "not_in_ledger", name, paid, None, theirs))
    elif record.status == "COMPLETED" and record.body is not None and bodies.get(_body(record), name) != name:
        add(Difference("paid_twice", name, paid, entry.cost, theirs))
    elif record.status == "COMPLETED" and entry.rank == RANK["failed"]:
        add(Difference("failed_here", name, paid, entry.cost, theirs))
    elif record.status == "COMPLETED" and entry.rank < RANK["delivered"]:
        add(Difference("not_fetched", name, paid, entry.cost, theirs))
    elif record.status == "FAILED" and entry.rank == RANK["delivered"]:
        add(Difference("failed_there", name, -(entry.cost or 0.0), entry.cost, theirs))
    elif record.status == "COMPLETED" and theirs is not None and abs(theirs - (entry.cost or 0.0)) > _CENT:
        add(Difference("cost_differs", name, theirs - (entry.cost or 0.0), entry.cost, theirs))


def _body(record: HistoryRecord) -> bytes:
    return canonical_json({"model": record.model, "body": claim_form(json.loads(json.dumps(record.body)))})


def _is_claimed(record: HistoryRecord, open_bodies: dict[str, list[dict[str, Any]]]) -> bool:
    """Whether a call matches a claim without a request_id: it was sent and got no answer, so its row is held."""
    body = record.body or {}
    return any(same_call(body, claimed) for claimed in open_bodies.get(str(body.get("prompt")), ()))
