"""Reading requests and writing answers, faults on the connection included."""
