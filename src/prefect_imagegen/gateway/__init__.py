"""The Segmind API, self-hosted: a server over an engine."""
