"""Where everything lies in a store: the one module that owns the names. All paths are root-relative, with `/`."""

STORE_FORMAT = 1
STORE_FILE = "store.json"
CLAIMS = "ledger/claims"
SEGMENTS = "ledger/segments"
GENERATIONS = "ledger/generations"
RUNS = "runs"


def image(key: str, extension: str) -> str:
    """The image of a request key (hex)."""
    return f"images/{key[:2]}/{key}.{extension}"


def claims_of(key: str) -> str:
    """The folder of all claims of a request key (hex)."""
    return f"{CLAIMS}/{key[:2]}/{key}"


def claim_name(n: int) -> str:
    """The last part of the path of claim number n (from 1)."""
    return f"{n}.json"


def claim(key: str, n: int) -> str:
    """Claim number n (from 1) of a request key (hex)."""
    return f"{claims_of(key)}/{claim_name(n)}"


def claim_id(key: str, n: int) -> str:
    """The request_id that claim number n led to."""
    return f"{claims_of(key)}/{n}.id.json"


def segment(name: str) -> str:
    """One immutable batch of ledger events."""
    return f"{SEGMENTS}/{name}.parquet"


def run(run_id: str, *names: str) -> str:
    """A file or folder of one run."""
    return "/".join((RUNS, run_id, *names))


def late_results(run_id: str) -> str:
    """The results of requests that were held when their shard ended, and settled later in the same run."""
    return run(run_id, "results", "late.parquet")


def part(run_id: str, family: str, index: int) -> str:
    """One Parquet part of a run: of its `plan`, `results`, `metadata` or `failures`."""
    return run(run_id, family, f"part-{index:05d}.parquet")
