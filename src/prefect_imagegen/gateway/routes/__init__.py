"""The routes of the API: generation, account and operation."""
