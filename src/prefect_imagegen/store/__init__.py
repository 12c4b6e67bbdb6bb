"""Object stores: reading, writing, heartbeats, the store contract, and the ledger."""
