"""Manifests, models, validation of rows, and the identity of requests."""
