"""Reference images, read and made reachable."""
