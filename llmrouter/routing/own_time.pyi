def own_times(row: tuple[float, ...]) -> tuple[float, float]:
    """``rules.own_latency`` of a row of features, and of the same with one token to come: the first one's (s).

    Raises:
        ValueError: the row has not all features.
    """
