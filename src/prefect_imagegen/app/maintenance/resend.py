"""`resend`: let the next run send held and failed rows again, at the user's risk of paying twice."""

import difflib
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.maintenance.access import existing_store
from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.ledger.events import RETRY_ASKED, Event
from prefect_imagegen.core.policy.outcomes import HELD_KINDS, OUTCOMES
from prefect_imagegen.core.request.models import price_of
from prefect_imagegen.providers.limits import SystemClock
from prefect_imagegen.store.heartbeat import Heartbeat, Process, StoreRunLiveness
from prefect_imagegen.store.ledger.files import damaged
from prefect_imagegen.store.ledger.ledger import StoreLedger
from prefect_imagegen.store.ledger.reading import load_ledger
from prefect_imagegen.store.object_store import FsspecObjectStore

CERTAIN = frozenset({"submitted", "other_run"})
"""Kinds whose image is on its way: they are resent only if named."""


@dataclass(slots=True)
class ResendReport:
    """The rows that will be sent again, and those left alone.

    `kinds`: rows by error kind. `risk_usd`: US dollars that may be paid a second time, at published prices.
    """

    rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    risk_usd: float = 0.0
    still_alive: int = 0
    """Rows left alone because a living run works on them."""
    on_their_way: int = 0
    """Rows left alone because a later call of theirs was accepted: the next run fetches its image."""

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dict, for JSON."""
        return {report_field.name: getattr(self, report_field.name) for report_field in fields(self)}


async def resend(settings: StoreSettings, run_id: str, kinds: Sequence[str] = ()) -> ResendReport:
    """Let the next run send the held and failed rows of a run again: those of some kinds, or all but `CERTAIN`.

    Open attempts are ended in the ledger, so that the next run sends attempt n+1. This function itself calls nothing.
    Raises RefusedError: `run_not_found`, `bad_option`.
    """
    unknown = sorted(set(kinds) - set(OUTCOMES))
    if unknown:
        near = difflib.get_close_matches(unknown[0].lower().replace("-", "_"), OUTCOMES, n=1)
        remedy = f"Did you mean {near[0]!r}?" if near else f"Known are: {', '.join(sorted(OUTCOMES))}."
        raise RefusedError("bad_option", f"--kind {unknown[0]}: there is no such kind.", remedy=remedy)
    async with existing_store(settings) as store:
        return await _resend(store, run_id, frozenset(kinds))


async def _resend(store: FsspecObjectStore, run_id: str, kinds: frozenset[str]) -> ResendReport:
    if await store.get(layout.run(run_id, "report.json")) is None:
        raise RefusedError(
            "run_not_found",
            f"{store.url} has no finished run {run_id!r}.",
            remedy="List the runs with `prefect-imagegen status`; one that died is gone on with by its own command.",
        )
    clock, process = SystemClock(), Process.this(secrets.token_hex(8))
    view = await load_ledger(store)
    ledger = StoreLedger(store, view, run_id=run_id, nonce=process.nonce, clock=clock)
    heartbeat = Heartbeat(store, run_id, process, clock)
    await heartbeat.ask_time()
    run_liveness = StoreRunLiveness(store, heartbeat, process, clock)
    report = ResendReport()
    for part in await store.list(layout.run(run_id, "failures")):
        table = _failures(part.path, await store.get(part.path) or b"")
        wanted = kinds or frozenset(set(OUTCOMES) - CERTAIN)
        table = table.filter(pc.is_in(table["error_kind"], pa.array(sorted(wanted))))
        table = table.filter(pc.is_in(table["status"], pa.array(["failed", "held"])))
        keys = pa.array([bytes.fromhex(key) for key in table["request_key"].to_pylist()], pa.binary(16))
        states = dict(zip(keys.to_pylist(), view.states(keys).to_pylist(), strict=True))
        for row in table.select(["request_key", "error_kind", "error_message", "model"]).to_pylist():
            key, kind, model = bytes.fromhex(row["request_key"]), row["error_kind"], row["model"]
            if states.pop(key, "delivered") == "delivered":
                continue  # made meanwhile, or handled with an identical row
            known = await ledger.known(key)
            last = known[-1] if known else None
            owner = last.record.claim.owner if last is not None and last.record is not None else None
            if (
                last is not None
                and await run_liveness.liveness_of(owner or layout.heartbeat(str(last.run_id))) == "alive"
            ):
                report.still_alive += 1
                continue
            on_its_way = last is not None and last.request_id and not last.is_closed
            # A call of another account cannot be fetched with our key, so it is not on its way for us.
            if on_its_way and kind != "other_account" and kinds.isdisjoint({"submitted", kind}):
                report.on_their_way += 1
                continue
            await ledger.record(
                Event(
                    "failed",
                    key,
                    f"{key.hex()}-{last.claim_no if last else 1}",
                    run_id,
                    clock.now(),
                    error_kind=RETRY_ASKED,
                    error_message=f"was: {kind}: {row['error_message']}"[:500],
                    request_id=last.request_id if last else None,
                    model=model,
                )
            )
            report.rows += 1
            report.kinds[kind] += 1
            if kind in HELD_KINDS or OUTCOMES[kind].billed != "no":
                report.risk_usd += price_of(model)
    await ledger.flush()
    return report


def _failures(path: str, data: bytes) -> pa.Table:
    """Read a part of a run's `failures/`. Raises StoreError that names a damaged file."""
    try:
        return pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise damaged(path) from error
