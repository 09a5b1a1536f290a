"""The benchmark protocol: policies side by side, paired, with intervals; its figures, tables and report."""
