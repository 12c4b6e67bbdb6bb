"""The ledger's facts of images that were done before a run, for the run's metadata."""

import asyncio

import pyarrow as pa
import pyarrow.compute as pc

from prefect_imagegen.app.running.session import Session
from prefect_imagegen.core.ledger.deliveries import Deliveries, group_of
from prefect_imagegen.core.ledger.fold import EVENT_SCHEMA
from prefect_imagegen.store.ledger.event_file import EventFile


class DoneBefore:
    """The delivered events of the rows that were done before the run, by part of its plan."""

    def __init__(self, session: Session, deliveries: Deliveries) -> None:
        self._parts = len(session.plan.content["parts"])
        self._deliveries = deliveries
        self._group: tuple[int, pa.Table] = (-1, EVENT_SCHEMA.empty_table())

    def of(self, index: int, part: pa.Table) -> pa.Table:
        """The events of one part's keys, sorted by time. Ask for parts in order: they are loaded in groups."""
        group = group_of(index, self._parts)
        if self._group[0] != group:
            self._group = (group, self._deliveries.of(group))
        events = self._group[1]
        return events.filter(pc.is_in(events["key"], _done_keys(part)))


async def done_before_run(session: Session) -> DoneBefore:
    """Read the ledger once for all rows that were done before; their events are held in a temporary file."""
    with EventFile() as spool:
        deliveries = Deliveries(spool)
        if session.planned_run.summary.counts["done"]:
            async for index, part in session.plan.parts(["state", "request_key"]):
                deliveries.ask(group_of(index, len(session.plan.content["parts"])), _done_keys(part))
            await asyncio.to_thread(deliveries.bring, session.view.all_delivered())
    return DoneBefore(session, deliveries)


def _done_keys(part: pa.Table) -> pa.Array:
    return part.filter(pc.equal(part["state"], "done"))["request_key"].combine_chunks()
