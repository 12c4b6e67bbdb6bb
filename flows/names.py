"""How runs are told apart in the Prefect UI: names and tags of flow runs, keys of artifacts."""

import hashlib
import re
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from prefect.runtime import deployment, flow_run

TAG = "imagegen"


def run_name() -> str:
    """The name of the present flow run, such as `products to campaign`: what is made, and where it goes."""
    given = flow_run.parameters
    return f"{_last_part(str(given.get('manifest', '')))} to {_last_part(str(given.get('store', '')))}"


def artifact_key(kind: str, store: str) -> str:
    """The key of an artifact: one for each deployment; outside of deployments, one for each store.

    Prefect keeps the versions of a key together, so runs that have nothing to do with each other need keys of their
    own. Keys hold lower case letters, digits and dashes only.
    """
    if deployment.id is not None and deployment.name:
        name = str(deployment.name)
        # Names of other scripts lose their letters in a key: a digest keeps them apart.
        return f"imagegen-{kind}-{_slug(name)}" + ("" if name.isascii() else f"-{_digest(name)}")
    return f"imagegen-{kind}-{_slug(_last_part(store))}-{_digest(store.rstrip('/'))}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _last_part(url: str) -> str:
    """The last folder or the file's stem of a URL or path, without its query: nothing of it is secret."""
    try:
        parts = urlsplit(url) if "://" in url else None
        path = (parts.path.strip("/") or parts.hostname or "") if parts else url
    except ValueError:  # no URL: the run is refused for that, under whatever name
        path = ""
    name = PurePosixPath(path).name
    return name.partition(".")[0] or name or "store"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "run"
