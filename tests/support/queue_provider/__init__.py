"""The queue API of docs/extend/provider.md: the distribution that adds it, and a server that speaks it."""
