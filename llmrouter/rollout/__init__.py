"""Policies on trial: which requests are whose, what is measured of each arm, when a trial ends. Pure."""
