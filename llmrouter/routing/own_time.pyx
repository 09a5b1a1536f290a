# Seconds of a request itself, by the formulas of rules: see own_time.pyi.

include "llmrouter/routing/rules.pxi"

cdef enum:
    FEATURES = CACHED + 1


def own_times(tuple row not None):
    cdef double x[FEATURES]
    cdef double whole_s
    cdef int place
    if len(row) != FEATURES:
        raise ValueError(f"{len(row)} features, not {FEATURES}")
    for place in range(FEATURES):
        x[place] = row[place]
    whole_s = own_latency(x)
    x[PREDICTED] = 1.0
    return whole_s, own_latency(x)
