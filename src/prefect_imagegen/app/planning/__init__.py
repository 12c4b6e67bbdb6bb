"""Everything before the first call."""
