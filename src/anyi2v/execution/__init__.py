"""Ways to run a whole network: graphs, packed weights, memory, the machine."""
