"""Ways to run a whole network: from packed weights, as CUDA graphs, within a predicted amount of memory."""
