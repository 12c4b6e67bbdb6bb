"""The states of a `PendingRequest`, and which may follow which. docs/design/executor.md draws them.

The executor tells a request of each state that it enters; nothing is decided by it. Tests compare what they see with
`TRANSITIONS`, and the page with both.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class State(StrEnum):
    """What is being done for a request just now, or how it ended."""

    NEW = "new"
    """Handed over, nothing done yet."""
    RESUME = "resume"
    """Reads what earlier runs, or the winner of a claim, left of the request."""
    REFERENCES = "references"
    """Gets its reference images, if it has any, to where the provider can fetch them, or into the call."""
    SLOT = "slot"
    """Waits for money, for a rate token and for a slot."""
    CLAIM = "claim"
    """Makes the claim (of a paid call), and asks the store for an image that is there already."""
    POST = "post"
    """The call is out."""
    COLLECT = "collect"
    """The call was accepted: its request_id is stored, then its result is polled and downloaded."""
    VERIFY = "verify"
    """The bytes are decoded in full."""
    PUT = "put"
    """The image is written to the store, create-only."""
    RECORD = "record"
    """The event `delivered` goes to the ledger."""
    LOOKUP = "lookup"
    """The request history is asked what became of a call."""
    LOOK_WAIT = "look_wait"
    """Waits until the next look into the history is due."""
    WATCH = "watch"
    """Waits for the image, or the end, of another run that works on the same key."""
    CLOSE = "close"
    """The attempt led to no image: its end is recorded, its money settled, and what follows is decided."""
    BACK_OFF = "back_off"
    """Waits before the next attempt."""
    TROUBLE = "trouble"
    """The store failed, or an unexpected error came up: the request ends, held where a call of it may be out."""
    GENERATED = "generated"
    """End: its image was made, or adopted, by this run."""
    REUSED = "reused"
    """End: another run made the image."""
    FAILED = "failed"
    """End: no image, and the reason."""
    HELD = "held"
    """End of this run: a call may be out, or another run is at work. The next run goes on from here."""
    NOT_RUN = "not_run"
    """End of this run: the run stopped before anything was sent."""


ENDS: Final = frozenset({State.GENERATED, State.REUSED, State.FAILED, State.HELD, State.NOT_RUN})
"""What a run says of a request when it is done with it: the column `status`."""

FROM_ANY_STATE: Final = frozenset({State.TROUBLE, State.HELD})
"""What may follow any state that is no end: trouble, and the row being given up while its call is out (a straggler, or
a run that is interrupted)."""

TRANSITIONS: Final[Mapping[State, frozenset[State]]] = {
    State.NEW: frozenset({State.RESUME, State.REFERENCES}),
    State.RESUME: frozenset(
        {State.REFERENCES, State.CLAIM, State.COLLECT, State.RECORD, State.LOOKUP, State.LOOK_WAIT, State.WATCH}
        | {State.REUSED, State.FAILED, State.HELD}
    ),
    State.REFERENCES: frozenset({State.SLOT, State.CLAIM, State.FAILED, State.NOT_RUN}),
    State.SLOT: frozenset({State.REFERENCES, State.CLAIM, State.COLLECT, State.FAILED, State.NOT_RUN}),
    State.CLAIM: frozenset({State.POST, State.RESUME, State.LOOKUP, State.RECORD, State.CLOSE, State.HELD}),
    State.POST: frozenset({State.COLLECT, State.LOOKUP, State.LOOK_WAIT, State.CLOSE, State.HELD}),
    State.COLLECT: frozenset({State.VERIFY, State.LOOKUP, State.LOOK_WAIT, State.CLOSE, State.HELD}),
    State.VERIFY: frozenset({State.PUT, State.COLLECT, State.LOOK_WAIT, State.CLOSE, State.HELD}),
    State.PUT: frozenset({State.RECORD}),
    State.RECORD: frozenset({State.GENERATED}),
    State.LOOKUP: frozenset({State.REFERENCES, State.POST, State.COLLECT, State.LOOK_WAIT, State.CLOSE, State.HELD}),
    State.LOOK_WAIT: frozenset({State.LOOKUP}),
    State.WATCH: frozenset({State.REFERENCES, State.REUSED}),
    State.CLOSE: frozenset({State.BACK_OFF, State.REFERENCES, State.FAILED, State.NOT_RUN}),
    State.BACK_OFF: frozenset({State.REFERENCES}),
    State.TROUBLE: frozenset({State.FAILED, State.HELD, State.NOT_RUN}),
}
"""The states that may follow each state, besides `FROM_ANY_STATE`. An end has none."""
