"""Reference images: read, cached, and sent to the provider."""
