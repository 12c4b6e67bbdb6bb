"""Manifests: Parquet, CSV and JSON lines, read as streams of windows."""
