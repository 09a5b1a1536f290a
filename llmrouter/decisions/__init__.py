"""Decisions as they are written down: their records, what they say in words, and what others would have brought."""
