"""Plan a manifest: turn its rows into requests, compare them with the ledger, and record what is to be done."""

import json
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefect_imagegen.app.planning.references import ReferenceChecks
from prefect_imagegen.app.planning.stored_plan import request_to_json
from prefect_imagegen.core import layout
from prefect_imagegen.core.images.reference_pictures import ReferenceFacts
from prefect_imagegen.core.ledger.fold import KEY_TYPE, CostStats, LedgerView
from prefect_imagegen.core.plan import PLAN_SCHEMA, WORKED, KeySeen, PlanSummary, Sharder
from prefect_imagegen.core.policy.outcomes import OUTCOMES, is_permanent
from prefect_imagegen.core.redact import redact
from prefect_imagegen.core.request.manifest import ColumnPlan, ManifestOptions, check_fields, names_to_look_for
from prefect_imagegen.core.request.manifest_types import columns_of
from prefect_imagegen.core.request.models import REFERENCES
from prefect_imagegen.core.request.references import BusyReason
from prefect_imagegen.core.request.request import Reference, key_of
from prefect_imagegen.core.request.validate import RowError, RowValidator, ValidRow
from prefect_imagegen.inputs.manifests.manifest import Manifest
from prefect_imagegen.inputs.manifests.window import UntypedTexts, Window
from prefect_imagegen.ports import ObjectStore

PLAN_FORMAT = 1
_SHOWN_FILES = 5
PlannedRow = ValidRow | list[RowError]


class Planner:
    """Plans one manifest. Iterating `windows` does the work; `summary` is complete once that has ended."""

    def __init__(
        self,
        manifest: Manifest,
        options: ManifestOptions,
        ledger: LedgerView,
        *,
        shard_size: int,
        limit: int | None = None,
        references: ReferenceChecks | None = None,
    ) -> None:
        self._references = references
        self.summary = PlanSummary()
        self._manifest = manifest
        self._options = options
        self.ledger = ledger
        self._limit = limit
        self._sharder = Sharder(shard_size)
        self._keys = KeySeen()
        self._ids = KeySeen(pa.int64())

    def windows(self) -> Iterator[pa.Table]:
        """The plan's parts, one table of `PLAN_SCHEMA` and carried columns per window. Raises RefusedError."""
        schemas = self._manifest.schemas(names_to_look_for(self._options), self._limit)
        columns, schema = columns_of(schemas, self._options)
        validator = RowValidator(self._options, columns)
        self.summary.carried = dict(columns.carried)
        self.summary.models, self.summary.warnings = validator.models, validator.warnings
        texts = UntypedTexts(columns)
        for window in self._manifest.windows(schema, columns.needed, self._limit):
            validator.base = window.base
            validator.untyped_texts = texts.numeric(window)
            yield self._window(window, validator)
            self._warn(window, columns)
        if columns.left_out:
            names = ", ".join(map(repr, columns.left_out))
            self.summary.warnings[f"columns of bytes are left out (--carry COLUMN takes one along): {names}"] = (
                self.summary.rows
            )
        if others := self._manifest.passed_over:
            names = ", ".join(others[:_SHOWN_FILES]) + (", ..." if len(others) > _SHOWN_FILES else "")
            self.summary.warnings[
                f"the folder is read for Parquet only; {len(others)} other tables are not: {names}"
            ] = self.summary.rows
        self.summary.warnings.update(self._manifest.remarks.texts())
        if self._references is not None:
            self.summary.warnings.update(self._references.remembered)
        check_fields({*self._options.columns, *self._options.values}, self.summary.models)

    def close(self) -> None:
        """Close the manifest's connections."""
        self._manifest.close()

    def _warn(self, window: Window, columns: ColumnPlan) -> None:
        """Add warnings about a window: columns named almost like a field, and words that are read as null."""
        for column, name in columns.near.items():
            array = window.column(column)
            count = len(array) - array.null_count
            if count:
                mapping = shlex.quote(f"{name}={column}")
                self.summary.warnings[
                    f"the column {column!r} looks like {name} and is not used as such; --column {mapping} does it"
                ] += count
        for column, (count, place) in window.null_words(_words_mean_null(columns)).items():
            words = f"column {column!r}: a word such as NA or NULL without quotes is taken as not given"
            self._manifest.remarks.add(words, place, count)

    def _window(self, window: Window, validator: RowValidator) -> pa.Table:
        start = self.summary.rows
        rows, references = self._validated(window, validator, start)
        self._refuse_duplicate_ids(rows, start)
        valid = [row for row in rows if isinstance(row, ValidRow)]
        keys = pa.array([key_of(row.request.canonical()) for row in valid], KEY_TYPE)
        states = self.ledger.states(keys).to_pylist()
        known = iter(zip(keys.to_pylist(), states, self._keys.numbers(keys), strict=True))
        judged = self._with_references(rows, references, states, validator, start)
        shards_here: dict[bytes, int] = {}
        columns: dict[str, list[Any]] = {name: [] for name in PLAN_SCHEMA.names}
        for offset, (before, row) in enumerate(zip(rows, judged, strict=True)):
            cells: dict[str, Any] = {"row_index": start + offset}
            key, in_ledger, shard_before = next(known) if isinstance(before, ValidRow) else (b"", None, None)
            if isinstance(row, ValidRow):
                first_shard = shards_here.get(key, shard_before)
                cells |= self._state_and_shard(key, in_ledger, first_shard)
                if cells["state"] in WORKED:
                    shards_here[key] = cells["shard"]
                    if cells["state"] == "unsettled" and cells["shard"] not in self.summary.unsettled_shards[-1:]:
                        self.summary.unsettled_shards.append(cells["shard"])
                    self.summary.to_make_by_class[row.request.cost_class] += 1
                cells |= _describe(row, key)
            else:
                reason = "; ".join(f"{error.column}: {error.reason}" for error in row)
                is_busy = all(error.is_busy for error in row)
                state, kind = ("busy", "reference_busy") if is_busy else ("invalid", "invalid_row")
                cells |= {"state": state, "error_kind": kind, "error_message": reason}
                for error in row:
                    self.summary.note(replace(error, place=window.place(offset)))
            self.summary.counts[cells["state"]] += 1
            for name, column in columns.items():
                column.append(cells.get(name))
        self.summary.rows += len(rows)
        self._sharder.close_shard()
        self.summary.shards = self._sharder.shards
        self._keys.add(pa.array(list(shards_here), KEY_TYPE), pa.array(list(shards_here.values()), pa.int32()))
        table = pa.table(columns, schema=PLAN_SCHEMA)
        for position, name in enumerate(validator.plan.carried):
            table = table.append_column(f"c_{position}", window.column(name))
        return table

    def _validated(
        self, window: Window, validator: RowValidator, start: int
    ) -> tuple[list[PlannedRow], list[tuple[Reference, ...]]]:
        """The window's rows as requests or errors, and the references of each, also of those with other errors.

        References that are identified by content are read first.
        """
        if not validator.is_fed(REFERENCES):
            plain = [validator.validate(start + offset, row) for offset, row in enumerate(_rows(window, validator))]
            return plain, [()] * len(plain)
        rows = list(_rows(window, validator))
        if self._references is not None:
            needed = {uri for row in rows for uri in validator.contents_needed(row)}
            validator.contents = self._references.contents(needed)
        validated = [validator.validate(start + offset, row) for offset, row in enumerate(rows)]
        references = [
            known.request.references if isinstance(known, ValidRow) else validator.references_of(row)
            for known, row in zip(validated, rows, strict=True)
        ]
        return validated, references

    def _with_references(
        self,
        rows: list[PlannedRow],
        references: list[tuple[Reference, ...]],
        states: list[str | None],
        validator: RowValidator,
        start: int,
    ) -> list[PlannedRow]:
        """The rows with the facts of their references; a bad reference makes its row invalid.

        Only references of rows without an image are examined, those of rows with other errors too: all errors are told
        together. A row that an earlier run left open stays in the plan even if its references are bad: its call may
        still be fetched.
        """
        if self._references is None or not validator.is_fed(REFERENCES):
            return rows
        state = iter(states)
        row_states = [next(state) if isinstance(row, ValidRow) else None for row in rows]
        chosen = [own for own, in_ledger in zip(references, row_states, strict=True) if in_ledger != "delivered"]
        facts = iter(self._references.judge(reference for own in chosen for reference in own))
        column = ", ".join(validator.plan.sources.get(REFERENCES, (REFERENCES,)))
        judged: list[PlannedRow] = []
        for offset, (row, own, in_ledger) in enumerate(zip(rows, references, row_states, strict=True)):
            if in_ledger == "delivered" or not own:
                judged.append(row)
                continue
            with_reasons = [(reference, next(facts)) for reference in own]
            bad = [
                RowError(start + offset, column, redact(reference.uri), reason, is_busy=isinstance(reason, BusyReason))
                for reference, reason in with_reasons
                if isinstance(reason, str) and in_ledger != "open"
            ]
            if not isinstance(row, ValidRow):
                judged.append(row + bad)
                continue
            for _, result in with_reasons:
                for change in result.changes if isinstance(result, ReferenceFacts) and not bad else ():
                    self.summary.warnings[f"a reference has to be {change} before it is sent"] += 1
            with_facts = tuple(
                replace(reference, facts=result if isinstance(result, ReferenceFacts) else None)
                for reference, result in with_reasons
            )
            judged.append(bad or replace(row, request=replace(row.request, references=with_facts)))
        return judged

    def _state_and_shard(self, key: bytes, in_ledger: str | None, first_shard: int | None) -> dict[str, Any]:
        """The plan's columns `state` and `shard` (and the error) of a valid row.

        `in_ledger`: the ledger's state of its key. `first_shard`: the shard of an earlier row with the same key.
        """
        if in_ledger == "delivered":
            return {"state": "done"}
        if in_ledger == "failed":
            kind, message = self.ledger.failure(key)
            if is_permanent(kind):
                return {"state": "failed", "error_kind": kind, "error_message": message or OUTCOMES[kind].meaning}
        if first_shard is not None:
            return {"state": "identical", "shard": first_shard}
        return {"state": "unsettled" if in_ledger == "open" else "new", "shard": self._sharder.next()}

    def _refuse_duplicate_ids(self, rows: list[PlannedRow], start: int) -> None:
        """With an id column: turn rows whose id an earlier row has into errors, in place."""
        column = self._options.id_column
        if column is None:
            return
        ids = [row.row_id if isinstance(row, ValidRow) else None for row in rows]
        digests = pa.array([None if row_id is None else key_of(row_id.encode()) for row_id in ids], KEY_TYPE)
        before = self._ids.numbers(digests)
        first: dict[str, int] = {}
        for offset, (row_id, earlier) in enumerate(zip(ids, before, strict=True)):
            if row_id is None:
                continue
            first_row = earlier if earlier is not None else first.get(row_id)
            if first_row is None:
                first[row_id] = start + offset
            else:
                rows[offset] = [
                    RowError(start + offset, column, repr(row_id), f"the id is that of row {first_row} already")
                ]
        self._ids.add(
            pa.array([key_of(row_id.encode()) for row_id in first], KEY_TYPE),
            pa.array(list(first.values()), pa.int64()),
        )


class PlanDraft:
    """A plan that is not stored yet: its parts are in a temporary folder until the run is accepted."""

    def __init__(self, planner: Planner) -> None:
        self.summary = planner.summary
        self._planner = planner
        self._folder = tempfile.TemporaryDirectory(prefix="imagegen-plan-")
        self._parts: list[dict[str, Any]] = []

    def make(self, *, keep: bool) -> PlanSummary:
        """Run the planner; `keep`: write the parts to the folder, for `upload`. Raises RefusedError."""
        for index, table in enumerate(self._planner.windows()):
            if keep:
                shards = _shards_in(table)
                pq.write_table(table, self._path(index), compression="zstd")
                first = self.summary.shards - shards
                self._parts.append({"rows": len(table), "first_shard": first, "shards": shards})
        return self.summary

    def costs(self) -> Mapping[str, CostStats]:
        """The costs that earlier runs on the store measured, by cost class."""
        return self._planner.ledger.costs()

    async def upload(self, store: ObjectStore, run_id: str) -> Mapping[str, Any]:
        """Write `runs/<run_id>/plan/`, with `plan.json` last; returns the content of that. Raises StoreError."""
        for index, part in enumerate(self._parts):
            part["path"] = layout.part(run_id, "plan", index)
            await store.put(part["path"], self._path(index).read_bytes())
        content = {"format": PLAN_FORMAT, "run_id": run_id, "parts": self._parts, "carried": self.summary.carried}
        content |= self.summary.as_dict()
        await store.put(layout.run(run_id, "plan", "plan.json"), json.dumps(content).encode(), "application/json")
        return content

    def close(self) -> None:
        """Remove the temporary files, and close the manifest's connections."""
        self._folder.cleanup()
        self._planner.close()

    def _path(self, index: int) -> Path:
        return Path(self._folder.name, f"{index:05d}.parquet")


def _describe(row: ValidRow, key: bytes) -> dict[str, Any]:
    request = row.request
    return {
        "id": row.row_id,
        "request_key": key,
        "model": request.model,
        "prompt": request.prompt,
        "seed": request.seed,
        "request": request_to_json(request),
    }


def _rows(window: Window, validator: RowValidator) -> Iterator[dict[str, Any]]:
    """The rows' cells, of the columns that feed request fields."""
    return window.cells(sorted(validator.plan.fed), _words_mean_null(validator.plan))


def _words_mean_null(columns: ColumnPlan) -> frozenset[str]:
    """The columns in which an unquoted NA or NULL of a CSV means null: all that feed fields, but for the id column."""
    return columns.fed - {columns.id_column}


def _shards_in(table: pa.Table) -> int:
    worked = table.filter(pc.is_in(table["state"], pa.array(sorted(WORKED))))
    return int(pc.count_distinct(worked["shard"]).as_py())
