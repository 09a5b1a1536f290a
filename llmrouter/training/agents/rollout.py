"""An agent that decides inside the simulator: what it sees, what its network answers, what it may do and does.

Plain functions over records and arrays, as ``llmrouter.sim.kernel`` has them: interpreted by tests, compiled by
``compiled``. ``environment`` says what the states, the actions and the two regimes are; this module computes them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llmrouter.routing.paper_state import (
    DECODES,
    PROMPT_TOKENS,
    PROMPTS,
    bucket_of,
    capacity,
    completion,
    queue_length,
    tokens_left,
)
from llmrouter.routing.rules import (
    COALESCE_ALONE,
    IMPOSED_ALONE,
    marginal_cost_row,
    mixing_penalty_scaled,
    own_latency,
)
from llmrouter.sim.kernel.decisions import eligible, fill_row, has_room
from llmrouter.sim.kernel.events import schedule
from llmrouter.sim.kernel.ledger import generated
from llmrouter.sim.kernel.records import DECIDE, DONE, LOAD_FIELDS, TICK, World
from llmrouter.sim.kernel.world import advance
from llmrouter.training.agents.product_network import ROW, TERMS, score_product, write_terms
from llmrouter.training.agents.shared_network import layer, score_shared, see_shared
from llmrouter.training.agents.window import best_pair, waiting_fit

# How an agent decides.
PER_TICK, SHIELDED, SHARED, BATCH_HOLD, PRODUCT, WINDOW = 0, 1, 2, 3, 4, 5

PAPER_PER_INSTANCE, PAPER_QUEUE = 6, 3
HIDDEN = 64
COSTS = 4
"""Of an instance, in seconds: own, imposed, coalesce, and the paper's penalty of mixing."""

SETTINGS: dict[str, str] = {
    "kind": "i8",
    "epsilon": "f8",
    "random": "i8",
    "hold_s": "f8",
    "longest_hold_s": "f8",
    "cut_at_s": "f8",
    "batch": "f8",
    "batch_wait_s": "f8",
    "window": "i8",
    "head": "i8",
    "head_since": "f8",
    "hold_until": "f8",
    "recording": "i8",
    "steps": "i8",
    "decisions": "i8",
    "unfinished": "f8",
}
"""The one record of an agent; times in seconds. ``unfinished`` is Σ(1 − generated/predicted) over the system."""


class Agent(NamedTuple):
    """An agent, its network and what it leaves behind; I instances, S and H numbers of a state, T steps at most.

    ``weights`` are the layers one after the other, each its matrix (inputs, outputs) by rows and then its biases.
    ``state`` (S) and ``shared`` (H), what the two kinds of networks see, ``costs`` (I·4), ``scores`` and ``allowed``
    (I + 1), hold's last, and the layers' outputs are scratch. What is logged of a decision: ``log_state`` (T, S),
    ``log_shared`` (T, H), ``log_costs`` (T, I·4), ``log_allowed`` (T, I + 1), ``log_action`` (T), and ``log_numbers``
    (T, 4): time, requests held, ``unfinished``, and how many requests have ended.
    """

    it: Any
    weights: Any
    state: Any
    shared: Any
    first: Any
    second: Any
    costs: Any
    scores: Any
    allowed: Any
    raw: Any
    terms: Any
    log_state: Any
    log_shared: Any
    log_raw: Any
    log_costs: Any
    log_allowed: Any
    log_action: Any
    log_numbers: Any


def rollout(world: World, agent: Agent) -> int:
    """Runs like ``advance``, with the agent's answers; ends with ``DONE`` also where the episode is cut."""
    code = advance(world)
    while code == DECIDE:
        if world.run[0].now > agent.it[0].cut_at_s:
            return DONE
        answer(world, agent)
        code = advance(world)
    return code


def answer(world: World, agent: Agent) -> None:
    """Answers the simulator's question: an instance, or hold."""
    run, it = world.run[0], agent.it[0]
    s, instances = run.asking, run.instances
    run.answered = 1
    run.load_sensitive = 1
    run.bids = 0
    if it.kind == PRODUCT:  # as a router has it: a hold ends with the next event
        it.head_since = run.asking_since if run.asking_since >= 0.0 else run.now
    elif it.head != s:
        it.head = s
        it.head_since = run.now
        it.hold_until = -1.0
    elif run.now < it.hold_until:
        return
    if it.kind == WINDOW:
        run.asking, world.bids[0] = best_pair(world, agent, s)
        run.bids = 1 if world.bids[0] >= 0 else 0
        it.decisions += 1
        if run.bids == 0:
            keep_holding(world, agent)
        return
    if permit(world, agent, s) == 0:
        return
    action = choose(world, agent, s)
    it.decisions += 1
    if action < instances:
        run.bids = 1
        world.bids[0] = action
    elif it.kind == PRODUCT:
        run.hold_until = run.now + it.hold_s
    elif it.kind != PER_TICK:
        keep_holding(world, agent)


def keep_holding(world: World, agent: Agent) -> None:
    """Holds for ``hold_s``."""
    run, it = world.run[0], agent.it[0]
    it.hold_until = run.now + it.hold_s - 1e-9
    if run.decision_every_s == 0.0:
        schedule(world, run.now + it.hold_s, TICK, 0)  # wakes the line; no other tick is made without a period


def permit(world: World, agent: Agent, s: int) -> int:
    """Writes which actions are allowed; returns how many instances are. Only the per-tick agent may do anything.

    The shield: instances that pass the KV gate (an idle one always does); hold neither while one of them is idle nor
    once the head has been the head for ``longest_hold_s``.
    """
    run, it = world.run[0], agent.it[0]
    instances, open_, idle = run.instances, 0, 0
    for e in range(instances):
        agent.allowed[e] = 0
        if not eligible(world, e, s):
            continue
        if it.kind == PER_TICK or has_room(world, e, s):
            agent.allowed[e] = 1
            open_ += 1
            if world.asked_loads[e * LOAD_FIELDS] == 0.0:
                idle = 1
    patient = idle == 0 and run.now - it.head_since < it.longest_hold_s
    agent.allowed[instances] = 1 if it.kind == PER_TICK or patient else 0
    return open_


def choose(world: World, agent: Agent, s: int) -> int:
    """The action: at random with probability ε, else the allowed one with the highest score, the first of equals."""
    run, it = world.run[0], agent.it[0]
    if it.kind == BATCH_HOLD:
        price(world, agent, s)
        return batch_hold(world, agent, s)
    look(world, agent, s)
    if it.kind == PRODUCT:
        score_product(agent.raw, agent.weights, agent.terms, agent.first, agent.scores, run.instances)
    elif it.kind == SHARED:
        score_shared(agent.weights, agent.shared, agent.first, agent.second, agent.scores, run.instances)
    else:
        score_paper(agent, run.instances)
    action = best_allowed(agent, run.instances)
    if it.epsilon > 0.0 and draw(agent) < it.epsilon:
        action = random_allowed(agent, run.instances)
    if it.recording and it.steps < len(agent.log_action):
        note(world, agent, action)
    return action


def look(world: World, agent: Agent, s: int) -> None:
    """Writes what the agent's network sees; what all see, and what the head would cost, where it is recorded."""
    it, instances = agent.it[0], world.run[0].instances
    paper = it.kind == PER_TICK or it.kind == SHIELDED  # noqa: PLR1714 - machine code has no sets
    if it.recording:
        price(world, agent, s)
    if it.recording or not paper:
        see_raw(world, agent, s)
    if it.recording or it.kind == SHARED:
        for e in range(instances):
            write_terms(agent.raw, ROW * e, agent.terms, TERMS * e)
        see_shared(agent.raw, agent.terms, instances, agent.shared)
    if it.recording or paper:
        see_paper(world, agent, s)


def draw(agent: Agent) -> float:
    """A number in (0, 1) of the agent's own stream (Park and Miller's generator)."""
    it = agent.it[0]
    it.random = it.random * 48_271 % 2_147_483_647
    return float(it.random / 2_147_483_647)


def best_allowed(agent: Agent, instances: int) -> int:
    """The allowed action with the highest score."""
    best = -1
    for action in range(instances + 1):
        if agent.allowed[action] and (best < 0 or agent.scores[action] > agent.scores[best]):
            best = action
    return best


def random_allowed(agent: Agent, instances: int) -> int:
    """Any allowed action, each as likely."""
    chosen, seen = -1, 0
    for action in range(instances + 1):
        if agent.allowed[action]:
            seen += 1
            if draw(agent) * seen < 1.0:
                chosen = action
    return chosen


def note(world: World, agent: Agent, action: int) -> None:
    """Logs a decision."""
    run, it = world.run[0], agent.it[0]
    step = it.steps
    it.steps += 1
    for place in range(agent.log_state.shape[1]):
        agent.log_state[step, place] = agent.state[place]
    for place in range(agent.log_shared.shape[1]):
        agent.log_shared[step, place] = agent.shared[place]
    for place in range(agent.log_raw.shape[1]):
        agent.log_raw[step, place] = agent.raw[place]
    for place in range(agent.log_costs.shape[1]):
        agent.log_costs[step, place] = agent.costs[place]
    for place in range(run.instances + 1):
        agent.log_allowed[step, place] = agent.allowed[place]
    agent.log_action[step] = action
    agent.log_numbers[step, 0] = run.now
    agent.log_numbers[step, 1] = held(world)
    agent.log_numbers[step, 2] = it.unfinished
    agent.log_numbers[step, 3] = run.ended


def held(world: World) -> int:
    """Requests held at the router that asks."""
    return int(world.routers[world.run[0].asking_router].held)


def price(world: World, agent: Agent, s: int) -> None:
    """Writes what the head costs on each instance; see ``COSTS``."""
    for e in range(world.run[0].instances):
        fill_row(world, e, s)
        agent.costs[COSTS * e] = own_latency(world.row)
        agent.costs[COSTS * e + 1] = marginal_cost_row(world.row, IMPOSED_ALONE)
        agent.costs[COSTS * e + 2] = marginal_cost_row(world.row, COALESCE_ALONE)
        agent.costs[COSTS * e + 3] = mixing_penalty_scaled(world.row)


def see_raw(world: World, agent: Agent, s: int) -> None:
    """Writes what ``llmrouter.routing.sight`` tells of each instance and of the line; preferences are there already."""
    run = world.run[0]
    for e in range(run.instances):
        fill_row(world, e, s)
        for k in range(ROW - 1):
            agent.raw[ROW * e + k] = world.row[k]
        agent.raw[ROW * e + ROW - 1] = agent.allowed[e]
    agent.raw[ROW * run.instances] = run.asking_held
    agent.raw[ROW * run.instances + 1] = run.now - agent.it[0].head_since


def see_paper(world: World, agent: Agent, s: int) -> None:
    """Writes the paper's state, scaled; also ``unfinished``."""
    run, it, pool = world.run[0], agent.it[0], world.pool
    it.unfinished = held(world)
    for e in range(run.instances):
        engine, at = pool.engines[e], PAPER_PER_INSTANCE * e
        for k in range(PAPER_PER_INSTANCE):
            agent.state[at + k] = 0.0
        least = -1.0
        j = engine.ledger_head
        while j >= 0:
            sequence = pool.sequences[j]
            tokens = generated(pool, e, j)
            left = tokens_left(sequence.predicted, tokens)
            it.unfinished += 1.0 - min(1.0, tokens / max(sequence.predicted, 1.0))
            if tokens == 0:
                agent.state[at] += 1.0 / PROMPTS
            else:
                agent.state[at + 1 + bucket_of(sequence.predicted)] += 1.0 / DECODES
            if least < 0.0 or left < least:
                least = left
            j = sequence.ledger_next
        context = float(engine.ledger_context)
        agent.state[at + 4] = capacity(context, engine.kv_tokens)
        agent.state[at + 5] = completion(
            least,
            engine.base_decode_s,
            engine.sequence_s * engine.ledger_requests,
            engine.context_s_per_token * context,
        )
    at = PAPER_PER_INSTANCE * run.instances
    agent.state[at] = queue_length(held(world))
    agent.state[at + 1] = pool.sequences[s].prompt / PROMPT_TOKENS
    agent.state[at + 2] = bucket_of(pool.sequences[s].predicted) / 2.0


def score_paper(agent: Agent, instances: int) -> None:
    """Action values of the multilayer perceptron (6·I + 3)-64-64-(I + 1) with ReLU."""
    width = PAPER_PER_INSTANCE * instances + PAPER_QUEUE
    at = layer(agent.weights, 0, agent.state, 0, width, agent.first, HIDDEN)
    for k in range(HIDDEN):
        agent.first[k] = max(0.0, agent.first[k])
    at = layer(agent.weights, at, agent.first, 0, HIDDEN, agent.second, HIDDEN)
    for k in range(HIDDEN):
        agent.second[k] = max(0.0, agent.second[k])
    layer(agent.weights, at, agent.second, 0, HIDDEN, agent.scores, instances + 1)


def batch_hold(world: World, agent: Agent, s: int) -> int:
    """The marginal cost with batch-hold: an instance without queued prompts is opened only to a batch.

    It is open where its gate would let in ``batch`` of those that wait, one after the other; where a prompt is queued
    there already; and where the head has been the head for ``batch_wait_s`` or hold is not allowed. Among the open ones
    the least own + 1.0·imposed + 2·coalesce; none open: hold.
    """
    run, it = world.run[0], agent.it[0]
    instances, best, least = run.instances, run.instances, 1e300
    everyone = agent.allowed[instances] == 0 or run.now - it.head_since >= it.batch_wait_s
    for e in range(instances):
        if not agent.allowed[e]:
            continue
        if (
            not everyone
            and world.asked_loads[e * LOAD_FIELDS + 2] <= 0.0
            and waiting_fit(world, agent, e, s) < it.batch
        ):
            continue
        cost = agent.costs[COSTS * e] + agent.costs[COSTS * e + 1] + 2.0 * agent.costs[COSTS * e + 2]
        if cost < least:
            best, least = e, cost
    return int(best)
