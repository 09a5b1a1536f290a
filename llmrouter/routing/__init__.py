"""Pure routing decisions: no clock, no randomness, no I/O of their own."""
