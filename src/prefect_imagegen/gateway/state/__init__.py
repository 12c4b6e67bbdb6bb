"""The state of a gateway: accounts, requests and files."""
