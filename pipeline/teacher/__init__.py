"""The teacher: the frozen network, its one pass into a cache, and the network in the loop."""
