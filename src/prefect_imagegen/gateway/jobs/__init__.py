"""From a checked call to its images."""
