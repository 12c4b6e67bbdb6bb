"""What a gateway remembers: the account, its calls and its files."""
