"""Learned routing agents: the paper's, and those that learn in its setting; see ``environment``."""
