"""The inputs of a run: manifests and reference images."""
