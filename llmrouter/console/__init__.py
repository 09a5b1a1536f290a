"""``kubectl llmrouter``: what an SRE looks at. It asks through kubectl, with one's own rights."""
