"""Decisions: what outcomes mean, when to try again, how much at once, how much money."""
