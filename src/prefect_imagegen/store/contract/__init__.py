"""The store contract: what a store must do for runs to be safe on it, as checks that can be run on any store."""
