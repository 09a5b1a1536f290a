"""Direct search of a policy's numbers on simulated traffic, accepted on a held-out window alone: ``llmrouter tune``."""
