"""Decision logs in the hands of a person: one decision in words, and what another policy would have done."""
