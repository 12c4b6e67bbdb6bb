"""What runs when: the Prefect flows."""
