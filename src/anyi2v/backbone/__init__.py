"""Networks and their hook points."""
