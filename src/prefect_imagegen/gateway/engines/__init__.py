"""What draws inside the gateway; chosen from a dict by name."""
