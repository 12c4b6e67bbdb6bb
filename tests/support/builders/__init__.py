"""Builders of what tests make again and again: pictures, requests, events."""
