"""The use cases, without Prefect: configure, plan, run, and maintain a store."""
