"""What the ledger records, and what it says of every request key."""
