"""Executing a planned run: session, shards, and the metadata and reports at its end."""
