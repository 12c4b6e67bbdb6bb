"""Manifests as streams."""
