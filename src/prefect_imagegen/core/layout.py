"""The path of everything in a store: only this module makes these names. Paths are root-relative, with `/`."""

import re

STORE_FORMAT = 1
STORE_FILE = "store.json"
CLAIMS = "ledger/claims"
ACCOUNTS = "ledger/accounts"
SEGMENTS = "ledger/segments"
GENERATIONS = "ledger/generations"
LEDGER_TIME = "ledger/time"
"""An object that is rewritten to learn the store's time from its time stamp; its content means nothing."""
RUNS = "runs"
ORDERS = "flow_runs"
PROBES = "doctor"
"""The folder of test objects that `doctor` writes and removes."""


IMAGE_PATH = re.compile(
    r"images/(?P<first>[0-9a-f]{2})/(?P<key>(?P=first)[0-9a-f]{30})(?:-(?P<number>[2-9]|[1-9][0-9]+))?\.[a-z0-9]+"
)
"""Matches the paths made by `image`, and those made by `more_image` (with the group `number`)."""


def image(key: str, extension: str) -> str:
    """The path of the image of a request key (hex)."""
    return f"images/{key[:2]}/{key}.{extension}"


def more_image(key: str, number: int, extension: str) -> str:
    """The path of a further image of the same answer; `number` starts at 2."""
    return f"images/{key[:2]}/{key}-{number}.{extension}"


def probe(nonce: str) -> str:
    """The path of a test object of `doctor`, or of a folder of them."""
    return f"{PROBES}/{nonce}"


def images_below(first: int) -> str:
    """The folder of all images of the request keys with this first byte."""
    return f"images/{first:02x}"


def quarantined(path: str, sha256: str) -> str:
    """The path to which damaged or wrong bytes at an image's path are moved."""
    return f"quarantine/{path.removeprefix('images/')}.{sha256[:16]}"


def reference(sha256: str, extension: str) -> str:
    """The path of a reference image kept in the store."""
    return f"references/{sha256}.{extension}"


def claims_of(key: str) -> str:
    """The folder of all claims of a request key (hex)."""
    return f"{CLAIMS}/{key[:2]}/{key}"


def claims_below(first: int) -> str:
    """The folder of all claims of the request keys with this first byte."""
    return f"{CLAIMS}/{first:02x}"


def claim_name(claim_no: int) -> str:
    """The file name of a claim; its number starts at 1."""
    return f"{claim_no}.json"


def claim(key: str, claim_no: int) -> str:
    """The path of a claim of a request key (hex); its number starts at 1."""
    return f"{claims_of(key)}/{claim_name(claim_no)}"


def claim_id(key: str, claim_no: int) -> str:
    """The path of the request_id that a claim led to."""
    return f"{claims_of(key)}/{claim_no}.id.json"


def account(fingerprint: str) -> str:
    """The path of what is known of the API key with this fingerprint."""
    return f"{ACCOUNTS}/{fingerprint}.json"


def segment(name: str) -> str:
    """The path of a segment: one immutable batch of ledger events."""
    return f"{SEGMENTS}/{name}.parquet"


def generation(number: int) -> str:
    """The path of the manifest of a generation of the ledger."""
    return f"{GENERATIONS}/{number}.json"


def generation_file(number: int, name: str) -> str:
    """The path of one file of sorted events, written for a generation."""
    return f"{GENERATIONS}/{number}/{name}.parquet"


def generation_of(path: str) -> int:
    """The generation for which a file of events was written; 0 for any other path."""
    number, name = path.removeprefix(f"{GENERATIONS}/").partition("/")[::2]
    return int(number) if number.isdigit() and name else 0


def run(run_id: str, *names: str) -> str:
    """The path of a file or folder of one run."""
    return "/".join((RUNS, run_id, *names))


def heartbeat(run_id: str) -> str:
    """The path of a run's heartbeat, which shows that the run is alive and its claims hold."""
    return run(run_id, "heartbeat.json")


def execution(order_id: str, number: int) -> str:
    """The path of the record of one execution of an order, from number 1.

    An order is a Prefect flow run with all its retries.
    """
    return f"{ORDERS}/{order_id}/{number}.json"


def late_results(run_id: str) -> str:
    """The path of the results of requests that were held when their shard ended and got their end later in the run."""
    return run(run_id, "results", "late.parquet")


def part(run_id: str, family: str, index: int) -> str:
    """The path of one Parquet part of a run; `family` is `plan`, `results`, `metadata` or `failures`."""
    return run(run_id, family, f"part-{index:05d}.parquet")
