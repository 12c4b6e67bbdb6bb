"""What runs read: manifests and references."""
