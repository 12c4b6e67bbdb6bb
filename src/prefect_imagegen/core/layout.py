"""Where everything lies in a store: the one module that owns the names. All paths are root-relative, with `/`."""

import re

STORE_FORMAT = 1
STORE_FILE = "store.json"
CLAIMS = "ledger/claims"
ACCOUNTS = "ledger/accounts"
SEGMENTS = "ledger/segments"
GENERATIONS = "ledger/generations"
LEDGER_TIME = "ledger/time"
"""Written anew to learn what time it is for the store; its content means nothing."""
RUNS = "runs"
ORDERS = "flow_runs"
PROBES = "doctor"
"""What is written to see what a store does, and removed again."""


IMAGE_PATH = re.compile(
    r"images/(?P<first>[0-9a-f]{2})/(?P<key>(?P=first)[0-9a-f]{30})(?:-(?P<number>[2-9]|[1-9][0-9]+))?\.[a-z0-9]+"
)
"""What `image` gives, and with a `number` what `more_image` gives."""


def image(key: str, extension: str) -> str:
    """The image of a request key (hex)."""
    return f"images/{key[:2]}/{key}.{extension}"


def more_image(key: str, number: int, extension: str) -> str:
    """A further image of the same answer, from number 2 on."""
    return f"images/{key[:2]}/{key}-{number}.{extension}"


def probe(nonce: str) -> str:
    """An object, or a folder of objects, that is written to see what the store does."""
    return f"{PROBES}/{nonce}"


def images_below(first: int) -> str:
    """The folder of all images of the request keys with this first byte."""
    return f"images/{first:02x}"


def quarantined(path: str, sha256: str) -> str:
    """Where bytes go that were found at an image's path and do not belong there."""
    return f"quarantine/{path.removeprefix('images/')}.{sha256[:16]}"


def reference(sha256: str, extension: str) -> str:
    """A reference image that the store keeps."""
    return f"references/{sha256}.{extension}"


def claims_of(key: str) -> str:
    """The folder of all claims of a request key (hex)."""
    return f"{CLAIMS}/{key[:2]}/{key}"


def claims_below(first: int) -> str:
    """The folder of all claims of the request keys with this first byte."""
    return f"{CLAIMS}/{first:02x}"


def claim_name(n: int) -> str:
    """The last part of the path of claim number n (from 1)."""
    return f"{n}.json"


def claim(key: str, n: int) -> str:
    """Claim number n (from 1) of a request key (hex)."""
    return f"{claims_of(key)}/{claim_name(n)}"


def claim_id(key: str, n: int) -> str:
    """The request_id that claim number n led to."""
    return f"{claims_of(key)}/{n}.id.json"


def account(fingerprint: str) -> str:
    """What is known of the key with this fingerprint."""
    return f"{ACCOUNTS}/{fingerprint}.json"


def segment(name: str) -> str:
    """One immutable batch of ledger events."""
    return f"{SEGMENTS}/{name}.parquet"


def generation(number: int) -> str:
    """The manifest of a generation of the ledger."""
    return f"{GENERATIONS}/{number}.json"


def generation_file(number: int, name: str) -> str:
    """One file of sorted events, of a generation."""
    return f"{GENERATIONS}/{number}/{name}.parquet"


def generation_of(path: str) -> int:
    """The generation that a file of events was written for; 0 for other files."""
    number, name = path.removeprefix(f"{GENERATIONS}/").partition("/")[::2]
    return int(number) if number.isdigit() and name else 0


def run(run_id: str, *names: str) -> str:
    """A file or folder of one run."""
    return "/".join((RUNS, run_id, *names))


def heartbeat(run_id: str) -> str:
    """The sign of life of a run: what vouches for its claims."""
    return run(run_id, "heartbeat.json")


def execution(order_id: str, n: int) -> str:
    """Which run execution number n (from 1) of an order is; an order is a Prefect flow run with all its retries."""
    return f"{ORDERS}/{order_id}/{n}.json"


def late_results(run_id: str) -> str:
    """The results of requests that were held when their shard ended, and settled later in the same run."""
    return run(run_id, "results", "late.parquet")


def part(run_id: str, family: str, index: int) -> str:
    """One Parquet part of a run: of its `plan`, `results`, `metadata` or `failures`."""
    return run(run_id, family, f"part-{index:05d}.parquet")
