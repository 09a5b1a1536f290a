"""Workloads: recorded traces, synthetic arrivals, the cells of the benchmark."""
