"""Simulated engines and pools of them: pure, in simulated time."""
