"""Reading requests and writing answers, injected faults of the connection included."""
