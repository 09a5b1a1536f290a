"""``llmrouter plan``: which pools, and how many GPUs, recorded traffic needs, before anyone buys one."""
