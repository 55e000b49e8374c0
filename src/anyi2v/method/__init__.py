"""The AnyI2V method, one module per section of the paper."""
