"""Choices and defaults that options share with the code behind them; standard library only."""

from typing import Literal

OnUnknown = Literal["reconcile", "retry-once", "hold"]
"""What is done about a call that was sent and not answered."""
DEFAULT_LAG_S = 7200.0
"""No lag of the history is published; an old help page speaks of up to two hours."""
ReferenceTransport = Literal["auto", "presign", "upload", "data-url"]
"""How references that are not public on the web reach the API."""
CheckReferences = Literal["all", "sample", "none"]
"""Which references are looked at before any call."""
DEFAULT_MEGAPIXELS = 64.0
"""The largest reference that is taken."""
