"""The artifacts of a run in the Prefect UI: live progress, failures by kind, and a summary."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    acreate_markdown_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)

from prefect_imagegen.app.running.report import report_markdown
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.app.running.session import Session
from prefect_imagegen.core import layout
from prefect_imagegen.core.money import usd
from prefect_imagegen.core.policy.outcomes import OUTCOMES
from prefect_imagegen.core.redact import redact
from prefect_imagegen.flows.names import artifact_key
from prefect_imagegen.tasks.outages import server

PERIOD_S = 2.0


@asynccontextmanager
async def showing_progress(session: Session) -> AsyncIterator[None]:
    """Keep a progress artifact up to date inside the `with` block. Errors of the Prefect server never stop a run."""
    artifact = await _create_progress(session)
    task = asyncio.create_task(_follow(session, artifact))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if artifact is not None:
            await _show(session, artifact)


async def publish_summary(result: RunResult) -> None:
    """Publish the summary, and the failures by kind (even an empty table, so that no older one is shown beside it)."""
    rows = [
        {
            "error": kind,
            "rows": count,
            "example": result.examples.get(kind, ""),
            "remedy": OUTCOMES[kind].remedy if kind in OUTCOMES else "",
        }
        for kind, count in sorted(result.failures.items(), key=lambda item: -item[1])
    ]
    failures_at = f"Rows without an image: {redact(result.store)}/{layout.run(str(result.run_id), 'failures')}"
    description = failures_at if rows else "Every row has its image."
    await _quietly(acreate_table_artifact(rows, key=artifact_key("failures", result.store), description=description))
    text = f"{result.generated} generated, {result.reused} reused of {result.rows} rows; {result.cost_text}"
    await _quietly(
        acreate_markdown_artifact(report_markdown(result), key=artifact_key("summary", result.store), description=text)
    )


async def _follow(session: Session, artifact: UUID | None) -> None:
    while True:
        await asyncio.sleep(PERIOD_S)
        if artifact is None:  # the server was away when the run started
            artifact = await _create_progress(session)
        else:
            await _show(session, artifact)


async def _create_progress(session: Session) -> UUID | None:
    creation = acreate_progress_artifact(
        progress=0.0,
        key=artifact_key("progress", session.planned_run.spec.store.url),
        description=f"Images of run {session.planned_run.run_id}",
    )
    artifact: UUID | None = await _quietly(creation)
    return artifact


async def _show(session: Session, artifact: UUID) -> None:
    await _quietly(aupdate_progress_artifact(artifact, _percent(session), description=_figures(session)))


def _percent(session: Session) -> float:
    return 100.0 * session.stats.done / session.stats.total if session.stats.total else 100.0


def _figures(session: Session) -> str:
    stats = session.stats
    kinds = ", ".join(f"{count} {kind}" for kind, count in stats.kinds.most_common(5))
    waits = f"; nothing is sent: {session.blocked_by} answers are awaited" if session.blocked_by else ""
    images = stats.statuses["generated"] + stats.statuses["reused"]
    text = f"{images} images, {stats.done} of {stats.total} rows, {usd(stats.cost_usd)}"
    return text + (f"; {kinds}" if kinds else "") + waits


async def _quietly(call: Any) -> Any:
    try:
        result = await call
    except Exception as error:  # noqa: BLE001 - whatever is wrong with the UI, the run goes on
        server().failed("An artifact could not be written", error)
        return None
    server().worked()
    return result
