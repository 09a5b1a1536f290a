# Sums over the few numbers of each law and text, row by row: see laws.pyi. In the order of the formulas that
# recalibrated.py, blended.py, online_regression.py and online_text.py give.

from libc.math cimport exp, log, sqrt
from libc.stdint cimport int32_t, int64_t

import numpy as np

cdef enum:
    LEVELS = 7
    MEDIAN = 3
    MOST_EXPERTS = 16

cdef double MIN_TOKENS = 1.0, MAX_TOKENS = 1e6, LEAST = 1e-9, NOTHING = -45.0, TAIL = 2.0, NARROW = 1e-4
cdef double[LEVELS + 2] knot_levels = [0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0]


cdef inline double _bounded(double tokens) noexcept:
    return MIN_TOKENS if tokens < MIN_TOKENS else MAX_TOKENS if tokens > MAX_TOKENS else tokens


def moved(const double[:, :] latent, const double[:, ::1] factors):
    cdef Py_ssize_t rows = latent.shape[0], row
    cdef int level
    cdef double most, value
    if latent.shape[1] != LEVELS or factors.shape[1] != LEVELS or factors.shape[0] != rows:
        raise ValueError("laws and factors are not of one shape")
    found = np.empty((rows, LEVELS))
    cdef double[:, ::1] found_NQ = found
    for row in range(rows):
        most = 0.0
        for level in range(MEDIAN, LEVELS):
            value = latent[row, level] * factors[row, level]
            if level == MEDIAN or value > most:
                most = value
            found_NQ[row, level] = _bounded(most)
        most = latent[row, MEDIAN] * factors[row, MEDIAN]
        for level in range(MEDIAN - 1, -1, -1):
            value = latent[row, level] * factors[row, level]
            if value < most:
                most = value
            found_NQ[row, level] = _bounded(most)
    return found


def blended(const double[:, ::1] weights, laws):
    cdef Py_ssize_t rows = weights.shape[0], experts = weights.shape[1], row, expert
    cdef int level
    cdef double value
    cdef const double[:, :] latent
    cdef const double[:] rank
    if len(laws) != experts or experts > MOST_EXPERTS:
        raise ValueError("laws and weights are not of one number")
    found, ranks = np.zeros((rows, LEVELS)), np.zeros(rows)
    cdef double[:, ::1] found_NQ = found
    cdef double[::1] rank_N = ranks
    for expert in range(experts):
        latent, rank = laws[expert]
        if latent.shape[0] != rows or latent.shape[1] != LEVELS or rank.shape[0] != rows:
            raise ValueError("laws and weights are not of one shape")
        for row in range(rows):
            for level in range(LEVELS):
                value = latent[row, level]
                found_NQ[row, level] += weights[row, expert] * log(value if value > LEAST else LEAST)
            value = rank[row]
            rank_N[row] += weights[row, expert] * log(value if value > LEAST else LEAST)
    for row in range(rows):
        for level in range(LEVELS):
            found_NQ[row, level] = _bounded(exp(found_NQ[row, level]))
        rank_N[row] = exp(rank_N[row])
    return found, ranks


def near_quantiles(
    double forecast, double sharpness, const double[::1] levels, const double[:, ::1] sorted_3K,
    const double[::1] said, const double[::1] prior, double[::1] scratch, double[::1] found,
):
    cdef Py_ssize_t points = sorted_3K.shape[1], place, level = 0
    cdef double total = 0.0, weight, middle, before = 0.0, away, wanted, upto = 0.0
    if not (sorted_3K.shape[0] == 3 and 0 < points <= scratch.shape[0] and said.shape[0] == prior.shape[0] == points):
        raise ValueError("examples, weights and room for them are not of one size")
    if found.shape[0] != levels.shape[0]:
        raise ValueError("as many quantiles as levels are found")
    for place in range(points):
        away = sorted_3K[0, place] - forecast
        away = away * away * sharpness
        weight = prior[place]
        if away > NOTHING:
            weight += exp(away) * said[place]
        scratch[place] = weight
        total += weight
    for place in range(points):
        weight = scratch[place]
        upto += weight
        middle = upto - 0.5 * weight
        while level < levels.shape[0] and levels[level] * total < middle:
            wanted = levels[level] * total
            if place == 0:
                found[level] = sorted_3K[2, 0]
            else:
                found[level] = sorted_3K[2, place - 1] + (wanted - before) * (
                    (sorted_3K[2, place] - sorted_3K[2, place - 1]) / (middle - before)
                )
            level += 1
        before = middle
    while level < levels.shape[0]:
        found[level] = sorted_3K[2, points - 1]
        level += 1


def word_sums(const int32_t[:, :] ids, const float[::1] weights, const float[::1] strengths, double least_norm):
    cdef Py_ssize_t rows = ids.shape[0], words = ids.shape[1], known = weights.shape[0], row, word
    cdef double total, squares, strength
    cdef int32_t one
    if strengths.shape[0] != known:
        raise ValueError("as many strengths as weights are known")
    found = np.empty(rows)
    cdef double[::1] found_N = found
    for row in range(rows):
        total = squares = 0.0
        for word in range(words):
            one = ids[row, word]
            if not 0 <= one < known:
                raise ValueError(f"word {one} is none of {known}")
            strength = strengths[one]
            total += weights[one] * strength
            squares += strength * strength
        squares = squares ** 0.5
        found_N[row] = total / (squares if squares > least_norm else least_norm)
    return found


def lay_out(
    double[:, ::1] inputs, const float[:, :] dense, const double[::1] scales, const int32_t[:, :] ids,
    const int64_t[::1] label_columns, latent, double level, double usual,
):
    cdef Py_ssize_t rows = inputs.shape[0], width = scales.shape[0], labels = label_columns.shape[0]
    cdef Py_ssize_t row, column, start, begin
    cdef const double[:, :] latent_NQ
    start = 1 + width
    for column in range(labels):
        if label_columns[column] < 1:
            raise ValueError("a label needs a column")
        start += label_columns[column]
    if latent is not None:
        latent_NQ = latent
    if (
        dense.shape[0] != rows or dense.shape[1] != width or ids.shape[0] != rows or ids.shape[1] < labels
        or inputs.shape[1] != start + (0 if latent is None else LEVELS)
        or (latent is not None and (latent_NQ.shape[0] != rows or latent_NQ.shape[1] != LEVELS))
    ):
        raise ValueError("inputs are not of the size of what is laid out in them")
    for row in range(rows):
        inputs[row, 0] = level
        for column in range(width):
            inputs[row, 1 + column] = dense[row, column] * scales[column]
        begin = 1 + width
        for column in range(labels):
            if ids[row, column] > 0:
                inputs[row, begin + ids[row, column] % label_columns[column]] = 1.0
            begin += label_columns[column]
        if latent is not None:
            for column in range(LEVELS):
                inputs[row, begin + column] = log(latent_NQ[row, column]) - usual


cdef void _knots(tuple latent, double* tokens, double* knots):
    """The quantile function at ``knot_levels``: tokens, and their logarithms."""
    cdef int level
    if len(latent) != LEVELS:
        raise ValueError(f"a law has {LEVELS} quantiles")
    for level in range(LEVELS):
        tokens[level + 1] = latent[level]
        knots[level + 1] = log(tokens[level + 1])
    knots[0] = max(knots[1] - TAIL * (knots[2] - knots[1]), 0.0)
    knots[LEVELS + 1] = min(knots[LEVELS] + TAIL * (knots[LEVELS] - knots[LEVELS - 1]), log(MAX_TOKENS))
    tokens[0], tokens[LEVELS + 1] = exp(knots[0]), exp(knots[LEVELS + 1])


cdef inline double _mean_between(double first, double last, double span) noexcept:
    """Of a length whose logarithm is uniform between those of ``first`` and ``last``, which differ by ``span``.

    Of a narrow segment a quotient would lose digits, and the geometric mean has them all.
    """
    return (last - first) / span if span > NARROW else sqrt(first * last)


def mean_below(tuple latent, double limit):
    cdef double[LEVELS + 2] tokens, knots
    cdef double log_limit = log(limit if limit > LEAST else LEAST), mean = 0.0, left = 1.0, kept, width
    cdef int knot
    _knots(latent, tokens, knots)
    for knot in range(LEVELS + 1):
        width = knot_levels[knot + 1] - knot_levels[knot]
        if knots[knot + 1] > log_limit:
            if knots[knot] >= log_limit:
                return mean + left * limit
            kept = (log_limit - knots[knot]) / (knots[knot + 1] - knots[knot])
            mean += width * (
                kept * _mean_between(tokens[knot], limit, log_limit - knots[knot]) + (1.0 - kept) * limit
            )
        else:
            mean += width * _mean_between(tokens[knot], tokens[knot + 1], knots[knot + 1] - knots[knot])
        left -= width
    return mean


def below(tuple latent, double tokens):
    cdef double[LEVELS + 2] at, knots
    cdef double log_tokens = log(tokens if tokens > LEAST else LEAST)
    cdef int passed = 0
    _knots(latent, at, knots)
    while passed < LEVELS + 2 and knots[passed] < log_tokens:
        passed += 1
    if passed == 0 or passed == LEVELS + 2:
        return 1.0 if passed else 0.0
    return knot_levels[passed - 1] + (log_tokens - knots[passed - 1]) / (knots[passed] - knots[passed - 1]) * (
        knot_levels[passed] - knot_levels[passed - 1]
    )
