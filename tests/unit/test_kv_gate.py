"""The KV gate counts prompts that wait only where KV is what they wait for."""

from __future__ import annotations

from dataclasses import replace

from llmrouter.domain import Instance, InstanceView, Load, Room
from llmrouter.profiles import PROFILES
from llmrouter.routing.inflight import LONG_QUEUE_S, QUEUE_FACTOR, has_free_kv, has_room
from llmrouter.routing.rooms import kv_gate

PROFILE = replace(next(iter(PROFILES.values())), kv_tokens=10_000, max_sequences=8, block_tokens=16)
LIMIT = 10_000 - 16
LONG_QUEUE = int(LONG_QUEUE_S / PROFILE.prefill_s_per_token)


def room(load: Load) -> Room:
    instance = Instance(instance_id="a", endpoint="", pool="", profile=PROFILE, models=frozenset())
    return kv_gate(1.0)(InstanceView(instance, load))


def test_what_waits_holds_no_kv_while_there_is_some() -> None:
    assert room(Load(requests=4, context_tokens=9_500)) == Room(max_requests=8, kv_limit_tokens=LIMIT)
    waiting = Load(requests=4, context_tokens=9_500, queued_prefill_tokens=6_000)
    assert room(waiting).kv_limit_tokens == LIMIT + 6_000
    assert has_room(waiting, room(waiting), prompt_tokens=1_000, predicted_output_tokens=10.0)


def test_it_counts_where_those_that_run_have_the_kv() -> None:
    full = Load(requests=4, context_tokens=11_000, queued_prefill_tokens=1_900)
    assert not has_free_kv(10_000, 11_000, 1_900)
    assert room(full) == Room(max_requests=8, kv_limit_tokens=LIMIT)
    assert has_free_kv(10_000, 11_000, 2_000)


def test_a_full_batch_admits_more_only_behind_a_long_queue_of_prefill() -> None:
    waits_for_its_turn = Load(requests=8, context_tokens=LONG_QUEUE, queued_prefill_tokens=LONG_QUEUE - 1)
    waits_for_prefill = Load(requests=8, context_tokens=LONG_QUEUE + 1, queued_prefill_tokens=LONG_QUEUE + 1)
    assert room(waits_for_its_turn).max_requests == 8
    assert room(waits_for_prefill).max_requests == QUEUE_FACTOR * 8


def test_without_any_queue_it_is_the_same_room_every_time() -> None:
    gate = kv_gate(1.0)
    instance = Instance(instance_id="a", endpoint="", pool="", profile=PROFILE, models=frozenset())
    assert gate(InstanceView(instance, Load())) is gate(InstanceView(instance, Load(requests=3, context_tokens=9)))
