"""Providers: the services that make images."""
