"""The budget: a hard cap on what a run may spend, kept by reserving each call's worst known cost. Pure.

Costs come from the answers. A call reserves the worst cost measured so far of its class (the model and what its price
depends on). Until five answers of a class have arrived, at most two of its calls are in flight. So the
overshoot is at most the number of calls in flight times the amount by which a cost exceeds its reservation. An answer
without a cost counts as its reservation. After five of those, the reservation is the published price or the worst
measured cost, whichever is more; the report says that this price is assumed.
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
    """The price of one call, set aside. `out`: the call is in flight, so others may wait for what it leaves over."""

    cost_class: str
    amount: float
    out: bool = True


@dataclass(slots=True)
class Budget:
    """The money of one run, in US dollars; a `cap` of None means no limit.

    By cost class: `worst` is the highest cost measured, `measured` the number of costs measured (both with those of
    earlier runs), and `unnamed` the number of this run's billed answers without a cost.
    """

    cap: float | None = None
    worst: dict[str, float] = field(default_factory=dict)
    measured: Counter[str] = field(default_factory=Counter)
    unnamed: Counter[str] = field(default_factory=Counter)
    spent: float = 0.0
    reserved: float = 0.0
    carried: dict[str, float] = field(default_factory=dict)
    """The part of `reserved` for calls that earlier executions of the same order have sent, by attempt id."""
    _out: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, cap: float | None, history: Mapping[str, CostStats]) -> "Budget":
        """A budget with the costs that earlier runs measured of each class."""
        worst = {name: stats.high for name, stats in history.items()}
        return cls(cap, worst, Counter({name: stats.count for name, stats in history.items()}))

    def carry(self, spent: float, calls: Mapping[str, float]) -> None:
        """Add what earlier executions of the order spent, and reserve money for their calls of unknown cost."""
        self.spent += spent
        self.carried = dict(calls)
        self.reserved += sum(calls.values())

    def uncarry(self, attempt_id: str) -> float:
        """Release what was reserved for an earlier execution's call, since its attempt has ended; the amount."""
        amount = self.carried.pop(attempt_id, 0.0)
        self.reserved -= amount
        return amount

    @property
    def overshoot(self) -> float:
        """US dollars spent above the cap."""
        return 0.0 if self.cap is None else max(0.0, self.spent - self.cap)

    @property
    def assumed(self) -> bool:
        """Whether the cap is checked with an assumed price, since answers name no cost or none was measured."""
        return self.cap is not None and any(
            count >= MEASURED_ENOUGH or not self.measured[name] for name, count in self.unnamed.items() if count
        )

    def reserve(self, cost_class: str, default: float) -> Reservation | Literal["wait", "over"]:
        """Reserve the price of one more call. `wait`: others have to end first. `over`: it could exceed the cap.

        `default` is the price of a class that was never measured (the published price), in US dollars.
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
        """Give a reservation back: the call was not billed."""
        self.detach(reservation)
        self.reserved -= reservation.amount

    def settle(self, reservation: Reservation, cost: float | None) -> None:
        """Turn a reservation into its cost: the call was billed. An unknown cost counts as the reservation."""
        self.release(reservation)
        self.spent += reservation.amount if cost is None else cost
        name = reservation.cost_class
        if cost is None:
            self.unnamed[name] += 1
        else:
            self.measured[name] += 1
            self.worst[name] = max(cost, self.worst.get(name, 0.0))

    def detach(self, reservation: Reservation) -> None:
        """Keep the money of a call reserved that may end late or never; other calls do not wait for it any more."""
        if reservation.out:
            reservation.out = False
            self._out[reservation.cost_class] -= 1
