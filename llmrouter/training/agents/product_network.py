"""The product's learned network, as plain functions over arrays: interpreted by tests, compiled into ``rollout``.

It charges a request what it costs on each instance, as the default rule does, but finds the *weights* of the terms anew
at every decision: each weight is its usual value times ``exp`` of a linear function of what the picture shows (how
full, how much queued, how large the request) and of the preferences. A second, small network says whether to hold.

Inputs are those of ``llmrouter.routing.sight``; ``product_graph`` has the same as a graph, and export compares the two.
``weights`` are the TERMS·PICTURE numbers of the linear functions by rows of the picture, then the hold network's.
"""

from __future__ import annotations

import math
from typing import Any

ROW, LINE = 16, 6
"""Numbers of an instance and of the line: ``LEARNED_INSTANCE_NAMES`` and ``LEARNED_LINE_NAMES``."""

TERMS = 11
USUAL = (2.0, 1.0, 1.0, 1.0, 1.0, 0.25, 0.25, 2.0, 0.01, 0.02, 0.02)
"""Weights of the terms where the picture says nothing: those of the default rule, and little of what it has not."""

PICTURE = 10
MOST_LOG_WEIGHT = 4.0
HOLD_INPUTS, HOLD_HIDDEN = 13, 8
HOLD_AT = TERMS * PICTURE
PRODUCT_WEIGHTS = HOLD_AT + HOLD_INPUTS * HOLD_HIDDEN + HOLD_HIDDEN + HOLD_HIDDEN + 1
FORBIDDEN = 1_000.0
"""What is taken off hold's score where it makes no sense: unless the best instance would be opened by the request."""

RESERVE = 0.15
"""r: the share of the tokens to come that counts against KV."""

FREE_KV = 0.9
"""Share of KV up to which what runs leaves KV free: prompts that wait there do not count against it."""

LEAST_BASE_S = 1e-4
ROOM_SCALE, MOST_ROOM = 50.0, 3.0


def write_terms(raw: Any, at: int, terms: Any, to: int) -> None:  # noqa: ANN401 - arrays
    """What the request costs on the instance whose row begins at ``at``, in seconds, term by term.

    n requests with C context tokens, Q of them to prefill, R to decode; p prompt tokens, c of them cached, d predicted;
    b, g1, g1b, g2, g3 the engine's coefficients; ``crowd = g3·n + g2·C``, ``prefill = g1·(p − c) + g1b·(p² − c²)``::

        0 overflow   (b + crowd)·R/n·(max(0, H + p + r·(R + d) − K)/C + max(0, n + 1 − slots)/n)
        1 queue      g1·Q                    2 own prefill   prefill
        3 crowded    d·(crowd + g3 + g2·p)   4 base          d·b
        5 stall      n·prefill               6 slowdown      n·v·(g3 + g2·(p + v/2)), v = min(d, R/n)
        7 coalesce   n·b if the engine is prefill-first and has nothing queued, else 0
        8 spread     d·(crowd + g3 + g2·p)²/b
        9 company    n·g1·Q                 10 number        n·b

    H, what holds KV, is C − Q where that leaves KV free, else C.
    """
    n, context, queued, remaining = raw[at], raw[at + 1], raw[at + 2], raw[at + 3]
    p, d, kv, slots = raw[at + 4], raw[at + 5], raw[at + 6], raw[at + 7]
    b, g1, g1b, g2, g3 = raw[at + 8], raw[at + 9], raw[at + 10], raw[at + 11], raw[at + 12]
    cached = raw[at + 14]
    n_or_1 = max(n, 1.0)
    left = remaining / n_or_1
    crowd_s = g3 * n + g2 * context
    holding = context - queued if context - queued <= FREE_KV * kv else context
    kv_deficit = max(0.0, holding + p + RESERVE * (remaining + d) - kv)
    slot_deficit = max(0.0, n + 1.0 - slots)
    crowded_s = crowd_s + g3 + g2 * p
    prefill_s = g1 * (p - cached) + g1b * (p * p - cached * cached)
    overlap = min(d, left)
    terms[to] = (b + crowd_s) * left * (kv_deficit / max(context, 1.0) + slot_deficit / n_or_1)
    terms[to + 1] = g1 * queued
    terms[to + 2] = prefill_s
    terms[to + 3] = d * crowded_s
    terms[to + 4] = d * b
    terms[to + 5] = n * prefill_s
    terms[to + 6] = n * overlap * (g3 + g2 * (p + 0.5 * overlap))
    terms[to + 7] = n * b * raw[at + 13] if queued <= 0.0 else 0.0
    terms[to + 8] = d * crowded_s * crowded_s / max(b, LEAST_BASE_S)
    terms[to + 9] = n * g1 * queued
    terms[to + 10] = n * b


def write_picture(raw: Any, terms: Any, instances: int, seen: Any) -> None:  # noqa: ANN401
    """Writes what the weights depend on (``PICTURE``), and after it what hold depends on (``HOLD_INPUTS``)."""
    line, hold = ROW * instances, PICTURE
    kv, queued, slots, first = 0.0, 0.0, 0.0, 0.0
    prefill, decode = 0.0, 0.0
    open_, prefilling, least_coalesce, most_room = 0.0, 0.0, 1e9, -MOST_ROOM
    for e in range(instances):
        at, to = ROW * e, TERMS * e
        taken = raw[at + 1] + RESERVE * raw[at + 3]
        kv += min(taken / raw[at + 6], 1.5)
        queued += terms[to + 1]
        slots += raw[at] / raw[at + 7]
        first += raw[at + 13]
        prefill += terms[to + 2]
        decode += terms[to + 3] + terms[to + 4]
        if raw[at + 15] > 0.0:
            open_ += 1.0
            if raw[at + 2] > 0.0:
                prefilling += 1.0
            least_coalesce = min(least_coalesce, terms[to + 7])
            asked = raw[at + 4] + RESERVE * raw[at + 5]
            most_room = max(most_room, min(MOST_ROOM, ROOM_SCALE * (1.0 - (taken + asked) / raw[at + 6])))
    for k in range(4):
        seen[k] = raw[line + 2 + k]
        seen[hold + 8 + k] = raw[line + 2 + k]
    seen[4] = kv / instances
    seen[5] = math.log(1.0 + 10.0 * queued / instances) / 3.0
    seen[6] = slots / instances
    seen[7] = first / instances
    seen[8] = math.tanh(math.log((prefill / instances + 1e-3) / 0.1) / 3.0)
    seen[9] = math.tanh(math.log((decode / instances + 1e-2) / 2.0) / 3.0)
    seen[hold] = math.log(1.0 + raw[line]) / 3.0
    seen[hold + 1] = min(raw[line + 1], 5.0)
    seen[hold + 2] = open_ / instances
    seen[hold + 3] = prefilling / instances
    seen[hold + 4] = min(least_coalesce, 5.0)
    seen[hold + 5] = most_room
    seen[hold + 6] = slots / instances
    seen[hold + 7] = min(decode / instances / 10.0, 5.0)
    seen[hold + 12] = math.log(float(instances)) / 3.0


def score_product(raw: Any, weights: Any, terms: Any, seen: Any, scores: Any, instances: int) -> None:  # noqa: ANN401, PLR0917
    """Writes the scores (I + 1) of the rows and the line in ``raw`` (16·I + 6); the other arrays are scratch."""
    for e in range(instances):
        write_terms(raw, ROW * e, terms, TERMS * e)
        scores[e] = 0.0
    write_picture(raw, terms, instances, seen)
    for t in range(TERMS):
        power = 0.0
        for k in range(PICTURE):
            power += seen[k] * weights[k * TERMS + t]
        weight = USUAL[t] * math.exp(max(-MOST_LOG_WEIGHT, min(power, MOST_LOG_WEIGHT)))
        for e in range(instances):
            scores[e] -= weight * terms[TERMS * e + t]
    best, opens = -1e30, 0.0
    for e in range(instances):
        if raw[ROW * e + 15] > 0.0:
            opening = raw[ROW * e + 13] if raw[ROW * e + 2] <= 0.0 else 0.0
            if scores[e] > best:
                best, opens = scores[e], opening
            elif scores[e] == best:
                opens = max(opens, opening)
    scores[instances] = best + hold_bonus(weights, seen) - (0.0 if opens > 0.0 else FORBIDDEN)


def hold_bonus(weights: Any, seen: Any) -> float:  # noqa: ANN401
    """How much better hold is than the best instance: a 13-8-1 network with tanh."""
    second = HOLD_AT + HOLD_INPUTS * HOLD_HIDDEN
    bonus = weights[second + 2 * HOLD_HIDDEN]
    for o in range(HOLD_HIDDEN):
        value = weights[second + o]
        for i in range(HOLD_INPUTS):
            value += seen[PICTURE + i] * weights[HOLD_AT + i * HOLD_HIDDEN + o]
        bonus += math.tanh(value) * weights[second + HOLD_HIDDEN + o]
    return float(bonus)
