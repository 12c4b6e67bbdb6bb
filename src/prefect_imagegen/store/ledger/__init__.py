"""The ledger in an object store."""
