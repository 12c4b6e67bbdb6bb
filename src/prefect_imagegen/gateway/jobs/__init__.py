"""Jobs: from a checked call to its image."""
