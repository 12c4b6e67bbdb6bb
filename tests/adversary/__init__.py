"""An adversary: seeded scenarios of a service, a store and machines that misbehave, over simulated time.

`loop` is the time, `wire` the network, `api` the honest service and its truth, `troubles` what goes wrong with its
answers, `store` the object store, `generator` draws scenarios from seeds, `session` is one run of the product, `world`
plays a scenario, `judge` says what it broke, and `runner` does thousands of them. The service is Segmind's; `queue_api`
plays the same world with a queue API that keeps no history, and judges it by rules of its own.
"""
