"""The simulator's inner loop over plain records: interpreted as it stands, or compiled; written once."""
