"""What providers share: the parts of the port that most of them have nothing to say about."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Any

from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.policy.abilities import Abilities
from prefect_imagegen.core.policy.history_lookup import Look, Window
from prefect_imagegen.core.tally import Tally
from prefect_imagegen.ports import Balance, HistoryRecord, PaidAccount


class BaseProvider:
    """Most of a `ports.Provider` and `ports.PaidAccount`; `submit`, `collect` and `aclose` are left to the subclass.

    `endpoint` is the base URL without credentials. A subclass has to replace the parts of the account that its
    abilities declare: here each raises ProviderError (`unknown`).
    """

    def __init__(self, name: str, endpoint: str, abilities: Abilities) -> None:
        self.name = name
        self.endpoint = endpoint
        self.abilities = abilities
        self.on_capacity: Callable[[int], None] = lambda _: None
        self.not_understood: Counter[str] = Tally()

    @property
    def account(self) -> PaidAccount | None:
        """This object, if it declares any part of an account."""
        declared = self.abilities.history or self.abilities.balance or self.abilities.uploads
        return self if declared else None

    @property
    def capacity(self) -> int | None:
        """None: as many calls at once as the settings say."""
        return None

    @property
    def left_out(self) -> Mapping[str, str]:
        """Empty: there is only one endpoint."""
        return {}

    def now(self) -> datetime | None:
        """None: the API's clock is not known."""
        return None

    async def open(self) -> None:
        """Do nothing: there is nothing to wait for."""

    async def engine(self) -> str | None:
        """None: it is no gateway."""
        return None

    async def examine(self) -> Sequence[tuple[str, str]]:
        """Empty: it is one service."""
        return ()

    def expect(self, *, sandbox: bool) -> None:
        """Do nothing: no answer comes from a sandbox."""

    async def check(self) -> Balance:
        """Not declared."""
        raise self._undeclared("balance")

    async def upload(self, data: bytes, media_type: str) -> str:  # noqa: ARG002 - the port's signature
        """Not declared."""
        raise self._undeclared("uploads")

    async def has_upload(self, url: str) -> bool:  # noqa: ARG002 - the port's signature
        """Not declared."""
        raise self._undeclared("uploads")

    async def find(self, model: str, claimed: Mapping[str, Any], window: Window) -> Look:  # noqa: ARG002 - the same
        """Not declared."""
        raise self._undeclared("request history")

    async def record(self, request_id: str) -> HistoryRecord | None:  # noqa: ARG002 - the port's signature
        """Not declared."""
        raise self._undeclared("request history")

    async def records(self, start: date, end: date) -> Sequence[HistoryRecord]:  # noqa: ARG002 - the same
        """Not declared."""
        raise self._undeclared("request history")

    def _undeclared(self, part: str) -> ProviderError:
        return ProviderError("unknown", f"{self.name} declares no {part}")
