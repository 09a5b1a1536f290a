"""The engine model against measured engines: errors per run, fits, and where a set cannot be matched."""
