"""From manifest rows to requests: models, validation, identity."""
