"""Images: decoding, facts, and preparing references."""
