"""HTTP: the one client factory, and the guarded fetching of reference images."""
