"""The budget: a hard cap on what a run may spend, kept by reserving each call's worst known cost. Pure.

Costs come from the answers. A call reserves the worst cost measured so far of its class (model, steps, sampler,
number of references). Until five answers of a class are in, at most two of its calls are out at once, so the
overshoot is at most the calls in flight times what the worst seen exceeds the reservation by. Where answers name no
cost, each counts as its reservation, and after five of them the reservation is the published price or the worst cost
seen, whichever is more: an assumed price, and the report says so.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from prefect_imagegen.core.ledger.fold import CostStats

MEASURED_ENOUGH = 5
UNMEASURED_IN_FLIGHT = 2
_ROUNDING = 1e-9


@dataclass(slots=True)
class Reservation:
    """The price of one call, set aside. `out`: the call is under way, so others may wait for what it leaves over."""

    cost_class: str
    amount: float
    out: bool = True


@dataclass(slots=True)
class Budget:
    """Money of one run, in US dollars. `cap` None means no limit.

    `worst` is the worst cost seen of each class, `measured` how many are known, those of earlier runs included;
    `unnamed` counts this run's billed answers that named no cost.
    """

    cap: float | None = None
    worst: dict[str, float] = field(default_factory=dict)
    measured: Counter[str] = field(default_factory=Counter)
    unnamed: Counter[str] = field(default_factory=Counter)
    spent: float = 0.0
    reserved: float = 0.0
    carried: dict[str, float] = field(default_factory=dict)
    """What of `reserved` is for calls that earlier executions of the same order have sent, by attempt id."""
    _out: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, cap: float | None, history: Mapping[str, CostStats]) -> "Budget":
        """With what earlier runs measured of each class."""
        worst = {name: stats.high for name, stats in history.items()}
        return cls(cap, worst, Counter({name: stats.count for name, stats in history.items()}))

    def carry(self, spent: float, calls: Mapping[str, float]) -> None:
        """Begin with what earlier executions of the order spent, and reserve for their calls without a cost."""
        self.spent += spent
        self.carried = dict(calls)
        self.reserved += sum(calls.values())

    def uncarry(self, attempt_id: str) -> float:
        """An attempt came to its end: what was reserved for it as an earlier execution's call, now given back."""
        amount = self.carried.pop(attempt_id, 0.0)
        self.reserved -= amount
        return amount

    @property
    def overshoot(self) -> float:
        """US dollars spent above the cap."""
        return 0.0 if self.cap is None else max(0.0, self.spent - self.cap)

    @property
    def assumed(self) -> bool:
        """Whether there is a cap, and it is held against a price that nobody has measured, or no answer names now."""
        return self.cap is not None and any(
            count >= MEASURED_ENOUGH or not self.measured[name] for name, count in self.unnamed.items() if count
        )

    def reserve(self, cost_class: str, default: float) -> Reservation | Literal["wait", "over"]:
        """Set the price of one more call aside; or say to wait until others have come back, or that it is too much.

        `default` is what to expect of a class that nobody has measured (the published price), in US dollars.
        """
        amount = self.worst.get(cost_class, default)
        if self.unnamed[cost_class] >= MEASURED_ENOUGH:
            amount = max(amount, default)
        if self.cap is not None:
            answers = self.measured[cost_class] + self.unnamed[cost_class]
            if answers < MEASURED_ENOUGH and self._out[cost_class] >= UNMEASURED_IN_FLIGHT:
                return "wait"
            if self.spent + self.reserved + amount > self.cap + _ROUNDING:
                return "wait" if self._out.total() else "over"
        self.reserved += amount
        self._out[cost_class] += 1
        return Reservation(cost_class, amount)

    def release(self, reservation: Reservation) -> None:
        """The call was not billed."""
        self.detach(reservation)
        self.reserved -= reservation.amount

    def settle(self, reservation: Reservation, cost: float | None) -> None:
        """The call was billed; a cost that nobody told counts as its reservation."""
        self.release(reservation)
        self.spent += reservation.amount if cost is None else cost
        name = reservation.cost_class
        if cost is None:
            self.unnamed[name] += 1
        else:
            self.measured[name] += 1
            self.worst[name] = max(cost, self.worst.get(name, 0.0))

    def detach(self, reservation: Reservation) -> None:
        """Nobody knows when, or whether, this call comes back: its money stays reserved, and nobody waits for it."""
        if reservation.out:
            reservation.out = False
            self._out[reservation.cost_class] -= 1
