"""The Segmind API."""
