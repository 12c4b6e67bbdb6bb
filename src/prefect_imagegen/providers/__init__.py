"""Providers: the services that make images. `registry` lists them."""
