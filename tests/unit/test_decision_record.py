"""The record of a decision: what it has, what it never has, and how a log of them is read."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from support.decisions import decided, record, request, view

from llmrouter.decisions.making import described, is_sampled, outcome_reason, record_of, tenant_digest
from llmrouter.decisions.record import MAX_LINE_BYTES, DecisionRecord, Outcome, parse_line, read_log, to_line
from llmrouter.decisions.words import told
from llmrouter.domain import Candidate, EngineSignal, Instance, InstanceView, Load
from llmrouter.errors import InvalidInputError
from llmrouter.profiles import H100_MIX

if TYPE_CHECKING:
    from pathlib import Path


def test_a_record_comes_back_from_its_line() -> None:
    one = record(view("a"), view("b", 3, context_tokens=900, remaining_decode_tokens=12.5))
    line = to_line(one)
    assert line.count(b"\n") == 1
    assert line.startswith(b'{"record":"llmrouter.dev/decision/v1"')
    assert parse_line(line) == one


def test_a_later_routers_fields_are_passed_over_and_missing_ones_are_named() -> None:
    values = json.loads(to_line(record(view("a"))))
    assert parse_line(json.dumps(values | {"mood": "good"})).chosen == "a"
    del values["prompt_tokens"]
    with pytest.raises(InvalidInputError, match=r"^prompt_tokens: Field required"):
        parse_line(json.dumps(values))
    with pytest.raises(InvalidInputError, match="more than"):
        parse_line(b" " * (MAX_LINE_BYTES + 1))


def test_unequal_profiles_of_one_name_are_told_apart_and_equal_ones_are_one() -> None:
    slow = replace(H100_MIX, base_decode_s=0.5)
    views = [
        InstanceView(Instance(name, name, "main", profile, frozenset({"llama"})), Load())
        for name, profile in (("a", H100_MIX), ("b", slow), ("c", replace(H100_MIX)))
    ]
    one = record_of(decided(*views), None)
    assert [each.profile for each in one.candidates] == ["h100-mix", "h100-mix#2", "h100-mix"]
    assert one.profiles["h100-mix#2"].engine_profile() == slow


def test_the_log_knows_no_text_no_tenant_and_no_hash_of_a_prompt() -> None:
    asked = request(tenant="acme", prefix_hashes=(12345678901,), prefix_block_tokens=16.0)
    line = to_line(record(view("a"), asked=asked)).decode()
    assert "acme" not in line
    assert "12345678901" not in line
    assert outcome_reason("EngineOverloaded") == "EngineOverloaded"
    assert outcome_reason("could not parse 'my secret prompt'") == ""
    assert tenant_digest("acme", "ns/a") != tenant_digest("acme", "ns/b")
    assert tenant_digest("", "ns/a") == ""


def test_sampling_is_a_stable_share_of_ids() -> None:
    ids = [f"request-{number}" for number in range(20_000)]
    tenth = {one for one in ids if is_sampled(one, 0.1)}
    assert tenth == {one for one in ids if is_sampled(one, 0.1)}
    assert 0.09 < len(tenth) / len(ids) < 0.11
    assert tenth <= {one for one in ids if is_sampled(one, 0.5)}
    assert is_sampled("any", 1.0)
    assert not is_sampled("any", 0.0)


def test_of_many_instances_those_that_were_named_are_described_first_then_those_with_room() -> None:
    views = [view(str(number)) for number in range(6)]
    named = (Candidate("5", 0.0, Load()), Candidate("3", 1.0, Load()))
    kept = described(views, named, frozenset({"1", "3", "5"}), 4)
    assert [one.instance.instance_id for one in kept] == ["5", "3", "1", "0"]


def test_the_largest_record_fits_its_bound() -> None:
    signal = EngineSignal(1.0, 100_000, 100_000, 0.123456789012345, 5)
    long = [
        InstanceView(
            Instance(f"{number:03d}" + "x" * 256, "e", "p" * 63, H100_MIX, frozenset({"llama"})),
            Load(10_000, 10_000_000, 10_000_000, 1234567.890123456),
            signal=signal,
        )
        for number in range(64)
    ]
    asked = request("i" * 256, application="a" * 500)
    line = to_line(record(*long, asked=asked, reason="r" * 9_000))
    assert len(line) < MAX_LINE_BYTES
    assert len(parse_line(line).candidates) == 64


def test_a_log_is_read_between_other_lines_and_a_broken_record_is_named_by_its_line(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    line = to_line(record(view("a")))
    log.write_bytes(b'{"level": "INFO"}\n' + line + b"not even JSON\n" + line)
    assert [one.chosen for one in read_log(log)] == ["a", "a"]
    assert len(list(read_log(log, stop_at=1))) == 1
    log.write_bytes(line + line[:200] + b"\n")
    with pytest.raises(InvalidInputError, match=r"log\.jsonl: line 2: "):
        list(read_log(log))
    with pytest.raises(InvalidInputError, match="No such file"):
        list(read_log(tmp_path / "none"))


def test_a_record_is_complete_where_all_instances_with_room_are_described() -> None:
    views = [view("a"), view("b"), view("c")]
    assert record(*views).is_complete
    assert not record(*views[:2], roomy_ids=frozenset("abc")).is_complete


def words(one: DecisionRecord) -> str:
    return " ".join(told(one).sentences)


def test_a_decision_in_words() -> None:
    said = words(record(view("a"), view("b", 3)))
    assert "2 of 2 instances that served the model had room." in said
    assert "Policy p (LeastInFlight) decided for a: it scored 0, the lowest; the next was b with 3." in said
    assert "the first token was expected after 100 ms, the end after 1 s." in said
    assert "It ended with 46 tokens 1 s after its arrival, the first after 100 ms: as foretold." in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"explored": True}, "to explore: a was drawn among all 2 with room"),
        ({"chosen": "b"}, "b was the next one that still had room"),
        ({"chosen": None, "reason": "no room"}, "It was turned away by policy p (LeastInFlight): no room."),
        ({"arrived_at_s": 8.0}, "It was held at the router for 2 s first."),
        ({"degraded": True}, "The shared ledger was away"),
        ({"served": "c:1"}, "The gateway sent it elsewhere: c:1."),
        ({"arm": "candidate"}, "It belongs to the arm candidate."),
        ({"prefill": "p"}, "Its prompt was computed at p."),
        ({"asked": request(cached_tokens={"a": 64})}, "64 of its prompt tokens were probably cached there."),
    ],
)
def test_what_is_unusual_is_said(changes: dict[str, Any], said: str) -> None:
    assert said in words(record(view("a"), view("b", 3), **changes))


def test_ties_and_fallbacks_are_said() -> None:
    assert "it and 1 more scored 0, the lowest, and one of them was drawn" in words(record(view("a"), view("b")))
    fallback = record(view("a")).policy.model_copy(update={"fallback_reason": "Late", "actions": ("ShareCapped",)})
    said = words(record(view("a"), policy=fallback))
    assert "the fallback, decided in place of policy p (LeastInFlight), because of Late" in said
    assert "The guard changed the answer: ShareCapped." in said


@pytest.mark.parametrize(
    ("kind", "said"), [("Failed", "It failed (Oom)."), ("Cancelled", "Its client left"), ("Lost", "Nobody reported")]
)
def test_ends_are_said(kind: str, said: str) -> None:
    outcome = Outcome.model_validate({"kind": kind, "reason": "Oom" if kind == "Failed" else ""})
    assert said in words(record(view("a"), outcome=outcome))
