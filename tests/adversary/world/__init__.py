"""The simulated world: the service, the network, the store, the clock."""
