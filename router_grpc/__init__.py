"""Deployable 1, the data plane: listeners, one routing service, adapters to the world."""
