"""Options and settings, and what they resolve to."""
