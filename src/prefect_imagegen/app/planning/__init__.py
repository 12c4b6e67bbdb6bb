"""Planning a run: everything that happens before the first call."""
