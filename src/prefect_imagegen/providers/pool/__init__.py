"""A pool of GPU workers."""
