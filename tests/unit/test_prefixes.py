"""The approximate prefix index: what it takes instances to hold, what it believes, and what bounds it."""

import random

import pytest

from llmrouter.routing.prefix_hits import LEAST_SHARE, believed_share, hit_tokens
from llmrouter.routing.prefixes import LEAST_BLOCK_TOKENS, MAX_BLOCKS, PrefixIndex, Use, thinned

BLOCK = 64
KV = 100 * BLOCK
CHAIN = tuple(range(1, 21))


def use(index: PrefixIndex, instance_id: str, hashes: tuple[int, ...], *, kv_tokens: int = KV) -> Use:
    prompt_tokens = BLOCK * len(hashes) + 1
    return index.use(instance_id, hashes, block_tokens=BLOCK, prompt_tokens=prompt_tokens, kv_tokens=kv_tokens)


def hits(index: PrefixIndex, hashes: tuple[int, ...]) -> dict[str, int]:
    return index.hits(hashes, BLOCK, BLOCK * len(hashes) + 1)


def test_an_instance_holds_what_was_sent_there_and_no_more() -> None:
    index = PrefixIndex()
    use(index, "a", CHAIN)
    use(index, "b", CHAIN[:5])
    use(index, "c", (99, *CHAIN[1:]))
    assert index.held(CHAIN) == {"a": 20, "b": 5}
    assert index.held((*CHAIN[:7], 77, *CHAIN[8:])) == {"a": 7, "b": 5}
    assert index.held((99, 2)) == {"c": 2}
    assert index.held((55,)) == index.held(()) == {}


def test_hits_are_tokens_and_leave_one_to_compute() -> None:
    index = PrefixIndex()
    use(index, "a", CHAIN)
    assert index.hits(CHAIN, BLOCK, BLOCK * 20 + 1) == {"a": BLOCK * 20}
    assert index.hits(CHAIN, BLOCK, BLOCK * 20) == {"a": BLOCK * 19}
    assert index.hits(CHAIN, 31.5, 10_000) == {"a": 630}
    assert index.hits(CHAIN, BLOCK, 1) == {}
    assert hit_tokens(3, 16, 48) == 32


def test_the_least_recently_used_goes_first_and_ends_before_beginnings() -> None:
    index = PrefixIndex()
    old, new = CHAIN[:6], tuple(range(100, 106))
    use(index, "a", old, kv_tokens=10 * BLOCK)
    use(index, "a", new, kv_tokens=10 * BLOCK)
    assert (index.held(old), index.held(new)) == ({"a": 4}, {"a": 6})
    use(index, "a", old[:4], kv_tokens=10 * BLOCK)
    use(index, "a", (200,), kv_tokens=10 * BLOCK)
    assert (index.held(old), index.held(new)) == ({"a": 4}, {"a": 5})
    assert index.entries == 10


def test_a_prompt_longer_than_the_cache_keeps_its_beginning() -> None:
    index = PrefixIndex()
    use(index, "a", CHAIN, kv_tokens=7 * BLOCK)
    assert index.held(CHAIN) == {"a": 7}


def test_an_instance_that_is_gone_comes_back_empty() -> None:
    index = PrefixIndex()
    for instance_id in ("a", "b", "c"):
        use(index, instance_id, CHAIN)
    index.keep_only({"a", "c"})
    assert index.held(CHAIN) == {"a": 20, "c": 20}
    assert index.entries == 40
    use(index, "b", CHAIN[:1])
    assert index.held(CHAIN) == {"a": 20, "b": 1, "c": 20}
    index.keep_only(())
    assert (index.held(CHAIN), index.entries) == ({}, 0)


def test_a_report_below_what_was_expected_is_believed_more_than_the_index() -> None:
    index = PrefixIndex()
    use(index, "a", CHAIN)
    index.reported(use(index, "a", CHAIN), 0)
    assert 0 < hits(index, CHAIN)["a"] < BLOCK * 20
    for _ in range(60):
        index.reported(use(index, "a", CHAIN), 0)
    assert hits(index, CHAIN) == {}
    assert index.shares == {"a": 0.0}
    for _ in range(60):
        index.reported(use(index, "a", CHAIN), BLOCK * 20)
    assert hits(index, CHAIN)["a"] > BLOCK * 10


def test_a_hit_that_failed_clears_what_was_used_before_it() -> None:
    index = PrefixIndex()
    before, after = tuple(range(300, 310)), tuple(range(400, 410))
    use(index, "a", before)
    use(index, "a", CHAIN)
    use(index, "a", after)
    index.reported(use(index, "a", CHAIN), 0)
    assert index.held(before) == {}
    assert index.held(after) == {"a": 10}
    assert index.held(CHAIN) == {"a": 20}, "the engine has just computed it"


def test_a_report_as_expected_or_above_changes_nothing() -> None:
    index = PrefixIndex()
    use(index, "a", CHAIN)
    expected = hits(index, CHAIN)
    index.reported(use(index, "a", CHAIN), 10**12)
    index.reported(use(index, "a", tuple(range(500, 520))), 0)
    index.reported(Use("never", 100, 1), 0)
    assert hits(index, CHAIN) == expected


@pytest.mark.parametrize("lie", [-(10**12), 10**12])
def test_lies_are_within_bounds(lie: int) -> None:
    index = PrefixIndex()
    use(index, "a", CHAIN)
    for _ in range(1_000):
        index.reported(use(index, "a", CHAIN), lie)
    assert 0 <= hits(index, CHAIN).get("a", 0) <= BLOCK * 20


def test_next_to_nothing_is_nothing() -> None:
    assert believed_share(0.0, 0.0) == 1.0
    assert believed_share(1e9, 1e9 * LEAST_SHARE * 0.9) == 0.0


def test_a_flood_of_blocks_is_bounded() -> None:
    index, rng = PrefixIndex(max_entries=1_000), random.Random(1)
    for number in range(300):
        flood = tuple(rng.getrandbits(64) for _ in range(50))
        use(index, f"i{number % 7}", flood, kv_tokens=10**9)
        assert index.entries <= 1_000
    use(index, "i0", CHAIN, kv_tokens=10**9)
    assert index.held(CHAIN)["i0"] == 20


def test_fine_blocks_are_thinned_and_long_prompts_cut() -> None:
    hashes, tokens = thinned(range(1, 100_001), 16)
    assert (hashes[:3], len(hashes), tokens) == ((4, 8, 12), MAX_BLOCKS, 64)
    assert thinned(range(5), 512) == ((0, 1, 2, 3, 4), 512)
    assert thinned(range(3), 1) == ((), LEAST_BLOCK_TOKENS)
    assert thinned(range(4), 48) == ((1, 3), 96)
