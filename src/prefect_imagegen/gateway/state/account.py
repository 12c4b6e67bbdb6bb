"""The accounts of a gateway: every request, what it was billed, and the balances."""

import hashlib
import hmac
import json
import math
import secrets
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from prefect_imagegen.core.money import exact
from prefect_imagegen.core.request.models import MODELS, price_of, reference_fields
from prefect_imagegen.core.request.profiles import models_of
from prefect_imagegen.gateway.faults import Fault
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.gateway.state.file_shelf import OUTPUT_NAME, UPLOAD_NAME, Shelf

UNLIMITED = 1e6


@dataclass(slots=True)
class Record:
    """One request. Times are in seconds of the gateway's clock; `cost` in US dollars, charged on success only."""

    request_id: str
    model: str
    body: dict[str, Any]
    submitted: float
    seed: int = 0
    status: str = "QUEUED"
    error: str | None = None
    broken: bool = False
    """Whether it failed through an error of the gateway itself."""
    cost: float = 0.0
    started: float | None = None
    finished: float | None = None
    output: str | None = None
    content_type: str = ""
    fault: Fault | None = None
    fetched: bool = False
    """Whether the image was delivered."""
    applied: Mapping[str, Any] = field(default_factory=dict)
    """The values used in place of parameters that the engine could not honour."""
    served_at: str = ""
    """The base URL that the client used: URLs of uploads below it are the gateway's own."""
    size: int = 0
    """Bytes of the kept body, as JSON."""
    account: str = ""
    """The name of the account whose key sent it; empty for the account without a name."""


@dataclass(slots=True)
class Account:
    """One account: US dollars charged, and reserved for work under way; the times of its last POSTs; its requests.

    `records` are oldest first. The limits for kept requests count for each account by itself.
    """

    charged: float = 0.0
    reserved: float = 0.0
    sent: deque[float] = field(default_factory=deque)
    records: dict[str, Record] = field(default_factory=dict)
    body_bytes: int = 0
    forgotten_until: float = float("-inf")
    """When the newest request was submitted that is no longer kept; older ones may be missing in the history."""


@dataclass(slots=True)
class AccountState:
    """The requests and counters of a gateway, over all accounts. One event loop writes; other threads may read."""

    settings: GatewaySettings
    folder: Path
    records: dict[str, Record] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    max_in_flight: int = 0
    revoked: bool = False
    accounts: defaultdict[str, Account] = field(default_factory=lambda: defaultdict(Account))
    forgotten: Counter[str] = field(default_factory=Counter)
    """Counts of requests that are no longer kept (`requests`), and of those that were billed (`billed`)."""
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    """The key that makes the names of uploads impossible to guess."""
    outputs: Shelf = field(init=False)
    uploads: Shelf = field(init=False)

    def __post_init__(self) -> None:
        most, age = self.settings.keep_bytes, self.settings.output_ttl_s
        self.outputs = Shelf(self.folder, most, age, OUTPUT_NAME)
        self.uploads = Shelf(self.folder / "assets", most, None, UPLOAD_NAME)

    def enter(self, record: Record) -> None:
        """Add an accepted request, and reserve its price."""
        account = self.accounts[record.account]
        account.records[record.request_id] = self.records[record.request_id] = record
        account.reserved += self.price(record.model)

    def close(self, record: Record) -> None:
        """Count the kept body of a request that has ended, and drop the oldest requests beyond the limits."""
        account, most = self.accounts[record.account], self.settings.keep_records
        record.size = len(json.dumps(record.body))
        account.body_bytes += record.size
        for oldest in list(islice(account.records.values(), 2 + max(0, len(account.records) - most))):
            is_too_large = account.body_bytes > self.settings.keep_body_bytes and oldest is not record
            if oldest.finished is None or not (is_too_large or len(account.records) > most):
                continue
            del self.records[oldest.request_id], account.records[oldest.request_id]
            account.body_bytes -= oldest.size
            account.forgotten_until = max(account.forgotten_until, oldest.submitted)
            self.forgotten["requests"] += 1
            self.forgotten["billed"] += oldest.status == "COMPLETED"

    @property
    def models(self) -> list[str]:
        """The slugs of the models that are served: those of the checkpoint, where there is one."""
        path = self.settings.model_path
        return sorted(MODELS if path is None else models_of(path))

    @property
    def has_key(self) -> bool:
        """Whether any key is set; if not, every key is accepted."""
        return bool(self.settings.accounts or self.settings.api_key)

    def account_of(self, key: str) -> str | None:
        """The name of the account that a key belongs to; None for a wrong key."""
        pairs = [(name, secret) for name, keys in self.settings.accounts.items() for secret in keys]
        if self.settings.api_key:
            pairs.append(("", self.settings.api_key))
        if not pairs:
            return ""
        sent = key.encode()
        # All keys are compared, so that the time taken reveals nothing.
        names = [name for name, secret in pairs if hmac.compare_digest(sent, secret.get_secret_value().encode())]
        return names[0] if names else None

    @property
    def charged(self) -> float:
        """US dollars that all accounts were charged."""
        return sum(account.charged for account in list(self.accounts.values()))

    @property
    def reserved(self) -> float:
        """US dollars reserved for work under way, over all accounts."""
        return sum(account.reserved for account in list(self.accounts.values()))

    @property
    def credits(self) -> float | None:
        """US dollars that the account without a name has left; None without a limit."""
        return None if self.settings.credits is None else self.left("")

    def left(self, account: str) -> float:
        """US dollars that an account has left; a million without a limit."""
        limit = self.settings.credits
        return UNLIMITED if limit is None else limit - self.accounts[account].charged

    @property
    def billed(self) -> list[Record]:
        """The requests that were charged."""
        return [record for record in self.records.values() if record.status == "COMPLETED"]

    def billed_by_body(self) -> Counter[str]:
        """How often each model and body was charged: more than once means paid twice."""
        return Counter(f"{record.model} {json.dumps(record.body, sort_keys=True)}" for record in self.billed)

    def price(self, model: str) -> float:
        """The price of an image in US dollars."""
        if self.settings.price_usd is not None:
            return self.settings.price_usd
        return price_of(model)

    def refund(self, record: Record, error: str) -> None:
        """Take the charge of a completed v1 call back, since it is not answered with 200; it becomes FAILED."""
        if record.status == "COMPLETED":
            self.accounts[record.account].charged -= record.cost
            record.status, record.error, record.cost = "FAILED", error, 0.0
            self.forgotten["billed"] -= record.request_id not in self.records

    def affords(self, account: str, model: str) -> bool:
        """Whether an account's balance covers one more image, besides those under way."""
        if self.settings.credits is None:
            return True
        return self.left(account) - self.accounts[account].reserved >= self.price(model)

    def count_post(self, account: str) -> float | None:
        """Count a POST against the requests per minute; if it is over the limit, the time when it may come again."""
        limit, now = self.settings.requests_per_minute, self.settings.clock()
        if not limit:
            return None
        sent = self.accounts[account].sent
        while sent and sent[0] <= now - 60:
            sent.popleft()
        if len(sent) >= limit:
            return sent[0] + 60
        sent.append(now)
        return None

    def find(self, account: str, request_id: str) -> Record | None:
        """An account's request; None if unknown, of another account, or older than the record's lifetime (1 hour)."""
        record = self.records.get(request_id)
        if record is None or record.account != account:
            return None
        if self.settings.clock() - record.submitted >= self.settings.record_ttl_s:
            return None
        return None if record.fault and record.fault.fault == "expired_record" else record

    def output_of(self, record: Record) -> Path | None:
        """The file of a finished image; None if there is none (any more). An expired one is removed."""
        if record.output is None or record.finished is None:
            return None
        path = self.folder / record.output
        if self.settings.clock() - record.finished >= self.settings.output_ttl_s:
            path.unlink(missing_ok=True)
        return path if path.exists() else None

    def unfetched(self, within_s: float) -> bool:
        """Whether an image finished within the last `within_s` seconds was not fetched yet."""
        since = self.settings.clock() - within_s
        return any(
            record.status == "COMPLETED" and not record.fetched and (record.finished or 0) > since
            for record in reversed(self.records.values())
        )

    def in_history(self, account: str) -> list[Record]:
        """The requests that an account's history shows by now, newest first."""
        horizon = self.settings.clock() - self.settings.history_lag_s
        own = (record for record in reversed(self.records.values()) if record.account == account)
        visible = (record for record in own if record.submitted <= horizon)
        return [record for record in visible if self.settings.history_pending or record.finished is not None]

    def statistics(self) -> dict[str, Any]:
        """The counters, as a JSON object."""
        twice = sum(count - 1 for count in self.billed_by_body().values())
        return {
            "calls": dict(self.calls),
            "requests": len(self.records) + self.forgotten["requests"],
            "billed": len(self.billed) + self.forgotten["billed"],
            "billed_twice": twice,
            "charged_usd": exact(self.charged),
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
        }


def kept_body(body: dict[str, Any]) -> dict[str, Any]:
    """A body as the history keeps it: without images inside it, as at Segmind. CPU-bound if it has some."""
    values = {name: body[name] for name in reference_fields() if name in body}
    return body | {
        name: [_without_data(url) for url in value] if isinstance(value, list) else _without_data(value)
        for name, value in values.items()
    }


def _without_data(url: Any) -> Any:
    """The SHA-256 in place of an image inside the call; other URLs stay as they are."""
    if not isinstance(url, str) or url[:5].lower() != "data:":
        return url
    return f"sha256:{hashlib.sha256(url.encode()).hexdigest()}"


def reset_header(moment: float) -> str:
    """A Unix time in the form of `x-rate-limit-reset-at-utc`: full seconds in UTC, rounded up."""
    return datetime.fromtimestamp(math.ceil(moment), UTC).strftime("%Y-%m-%d %H:%M:%S")
