"""What the API serves: generation, the account, operation."""
