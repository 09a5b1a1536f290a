"""Where the data plane meets the world: ledgers, models, instances, metrics of engines."""
