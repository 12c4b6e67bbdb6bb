"""The report of `verify`: the problems of a store, and what was repaired."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from prefect_imagegen.app.maintenance.repair import Repair

ProblemKind = Literal["missing_image", "wrong_bytes", "undecodable", "unrecorded_image", "paid_not_stored"]
MEANINGS: dict[ProblemKind, str] = {
    "missing_image": "the ledger has an image that is not in the store",
    "wrong_bytes": "an image's bytes are not those that the ledger recorded",
    "undecodable": "an image has the recorded bytes, and they are no whole image",
    "unrecorded_image": "an image that the ledger does not know",
    "paid_not_stored": "a call was billed, and its image could not be fetched",
}


@dataclass(slots=True)
class Problem:
    """A problem with one image. `repair`: what was done about it, if anything."""

    kind: ProblemKind
    path: str
    detail: str
    repair: Repair | None = None


@dataclass(slots=True)
class VerifyReport:
    """The result of `verify`. `images`: read. `in_progress`: images that a run will still record or fetch."""

    store: str
    images: int = 0
    in_progress: int = 0
    problems: list[Problem] = field(default_factory=list)
    without_account: bool = False
    """Whether the embedded sandbox filled the store, so that there is no API to fetch anything from."""
    was_asked: bool = False
    """Whether there was an API, with a key, from which lost images were fetched where it had them."""

    @property
    def sound(self) -> bool:
        """Whether there are no problems, or all were repaired without a loss."""
        return all(problem.repair in ("fetched_again", "adopted") for problem in self.problems)

    @property
    def kinds(self) -> Counter[str]:
        """Problems by kind."""
        return Counter(problem.kind for problem in self.problems)

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dict, for JSON."""
        return asdict(self)
