"""Executing a prepared run."""
