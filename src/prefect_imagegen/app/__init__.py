"""What the product does, without Prefect: plan, run shards, finish, status."""
