# The best of scores, and candidates: see ranking.pyi.

from cpython.object cimport PyObject_GenericSetAttr
from libc.math cimport isfinite

cdef enum:
    MOST = 64

MOST_NAMED = MOST


def best(list scores, draw, int most):
    cdef double[MOST] kept, ties
    cdef Py_ssize_t[MOST] at
    cdef Py_ssize_t place
    cdef double value, tie
    cdef int count = 0, wrong = 0, last
    if not 0 < most <= MOST:
        raise ValueError(f"{most} are to be named, not 1 to {MOST}")
    for value in scores:
        wrong += not isfinite(value)
    if wrong:
        raise FloatingPointError(f"{wrong} of {len(scores)} scores are not finite")
    for place in range(len(scores)):
        value, tie = scores[place], draw()
        if count == most and not (value < kept[count - 1] or (value == kept[count - 1] and tie < ties[count - 1])):
            continue
        last = count if count < most else most - 1
        while last > 0 and (value < kept[last - 1] or (value == kept[last - 1] and tie < ties[last - 1])):
            kept[last], ties[last], at[last] = kept[last - 1], ties[last - 1], at[last - 1]
            last -= 1
        kept[last], ties[last], at[last] = value, tie, place
        count = min(count + 1, most)
    return [(kept[last], at[last]) for last in range(count)]


def named(kind, list ranked, int most):
    cdef list made = []
    cdef Py_ssize_t place
    for place in range(min(most, len(ranked))):
        score, view = ranked[place]
        one = kind.__new__(kind)
        PyObject_GenericSetAttr(one, "instance_id", view.instance.instance_id)  # frozen: not as others set it
        PyObject_GenericSetAttr(one, "score", score)
        PyObject_GenericSetAttr(one, "seen", view.load)
        PyObject_GenericSetAttr(one, "prefill", None)
        made.append(one)
    return tuple(made)
