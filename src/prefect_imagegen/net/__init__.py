"""The one HTTP client factory, and the guarded fetching of references."""
