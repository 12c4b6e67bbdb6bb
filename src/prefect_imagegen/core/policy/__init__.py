"""Decisions: the meaning of outcomes, waiting and retries, concurrency, and money."""
