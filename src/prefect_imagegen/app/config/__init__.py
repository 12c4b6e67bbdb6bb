"""Options and settings of a run, and how they are resolved to adapters."""
