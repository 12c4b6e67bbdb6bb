"""Tables of the reference, made from the code: columns, errors, states, exit codes.

`cog -r docs/reference/*.md docs/decisions/index.md` writes them into the pages, CI checks them.
"""

from prefect_imagegen.app.running.result import EXIT_CODES, STOP_REASONS
from prefect_imagegen.core.metadata import COLUMN_MEANINGS, METADATA_SCHEMA, STATUSES
from prefect_imagegen.core.policy.outcomes import HELD_KINDS, OUTCOMES
from prefect_imagegen.core.request.models import MODELS, FieldSpec, ModelSpec


def table(*rows: tuple[str, ...]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])


def manifest_columns() -> str:
    """Fields of requests, and so names of manifest columns: those of every model, then those of each."""
    slugs = ", ".join(MODELS)
    common = table(
        ("column", "type", "default", "values"),
        ("prompt", "string", "required", "up to 64 kB, sent byte for byte"),
        ("model", "string", "`--model`", f"{slugs}, any other slug"),
        ("seed", "integer", "derived", "-1 or null: derived from the row's id, else from prompt and references"),
        ("image_urls", "list of strings", "none", "reference images in order: URLs or paths"),
    )
    alike: dict[tuple[object, ...], list[ModelSpec]] = {}
    for spec in MODELS.values():
        alike.setdefault((*spec.fields.values(), spec.references), []).append(spec)
    return "\n\n".join([common, *map(_model_fields, alike.values())])


def _model_fields(specs: list[ModelSpec]) -> str:
    spec = specs[0]
    fields = (
        (field.name, field.type, "none" if field.default is None else f"`{field.default}`", _limits(field))
        for field in spec.fields.values()
    )
    head = f"## {', '.join(spec.slug for spec in specs)}"
    return "\n\n".join([head, _references(spec), table(("column", "type", "default", "values"), *fields)])


def _references(spec: ModelSpec) -> str:
    """What a model takes as references, and how they are sent."""
    references = spec.references
    if not references.fields:
        return "Takes no reference images."
    least = f"at least {references.minimum}" if references.minimum else "optional"
    limit = "" if references.advised is None else f", a warning above {references.advised}"
    if references.maximum is not None:
        limit = f", at most {references.maximum}"
    if references.is_list:
        sent = f"sent as the list `{references.fields[0]}`"
    else:
        sent = "sent as " + ", ".join(f"`{name}`" for name in references.fields)
    return f"References in the column `image_urls`: {least}{limit}; {sent}."


def _limits(spec: FieldSpec) -> str:
    low, high = spec.minimum, spec.maximum
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    return ", ".join(spec.choices) if low is None else f"at least {low:g}"


def metadata_columns() -> str:
    """Columns of the metadata."""
    rows = ((f"`{name}`", str(METADATA_SCHEMA.field(name).type), text) for name, text in COLUMN_MEANINGS.items())
    return table(("column", "type", "meaning"), *rows)


def errors() -> str:
    """Kinds of errors."""

    def ends(kind: str) -> str:
        return (
            "held"
            if kind in HELD_KINDS
            else {"row": "failed", "model": "failed", "run": "not_run"}[OUTCOMES[kind].scope]
        )

    rows = (
        (f"`{outcome.kind}`", outcome.meaning, "yes" if outcome.retryable else "", ends(outcome.kind), outcome.remedy)
        for outcome in OUTCOMES.values()
    )
    return table(("error_kind", "meaning", "retried", "row ends", "remedy"), *rows)


def statuses() -> str:
    """States of rows."""
    return table(("status", "meaning"), *((f"`{name}`", text) for name, text in STATUSES.items()))


def exit_codes() -> str:
    """Exit codes, with the Prefect states that go with them."""
    states = {
        0: "Completed",
        1: "Completed 'CompletedWithFailures'; Failed above `fail_above`, or without any image",
        2: "Failed: `refused (...)`",
        3: "Failed: `stopped (stop_reason)`; Cancelled",
        4: "Failed; Crashed where the process died",
    }
    rows = ((str(code), text, states[code]) for code, text in EXIT_CODES.items())
    return table(("exit code", "meaning", "state of the flow run"), *rows)


def stop_reasons() -> str:
    """Why a run stops early."""
    return table(("stop_reason", "meaning"), *((f"`{name}`", text) for name, text in STOP_REASONS.items()))
