from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmrouter.domain import EngineMode
from llmrouter.errors import InvalidInputError
from llmrouter.profiles import (
    H100_MIX,
    KNOWN,
    LLAMA_31_8B_RTX_4090,
    LLAMA_31_8B_RTX_PRO_6000,
    OPT_13B_A100,
    PAPER_V100,
    PROFILES,
    Basis,
    kv_capacity_tokens,
)
from llmrouter.profiles.source import MODELS
from llmrouter.profiles.table import rows
from llmrouter.sim.model import EngineModel, check_profile

DOC = Path(__file__).resolve().parents[2] / "docs" / "workloads.md"


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_every_profile_makes_an_engine_and_says_where_it_comes_from(name: str) -> None:
    known = KNOWN[name]
    assert PROFILES[name] is known.profile
    check_profile(known.profile)
    assert EngineModel(known.profile).max_request_tokens == known.profile.kv_tokens
    assert re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", name)
    assert known.model in MODELS
    assert known.source
    assert known.licence or known.basis is Basis.PRINTED
    assert known.gpus >= 1


def test_the_profiles_others_refer_to_keep_names_and_numbers() -> None:
    first = (LLAMA_31_8B_RTX_4090, LLAMA_31_8B_RTX_PRO_6000, OPT_13B_A100, PAPER_V100, H100_MIX)
    assert list(PROFILES.values())[:5] == list(first)
    assert [one.base_decode_s for one in first] == [17.3e-3, 13.8e-3, 24.9e-3, 15.5e-3, 6.5e-3]
    assert [one.kv_tokens for one in first] == [42_000, 537_104, 56_000, 19_200, 400_000]


@pytest.mark.parametrize(
    ("model", "bytes_per_token"),
    [("Llama-2-7b", 524_288), ("Llama-3-8B", 131_072), ("Llama-2-70b", 327_680), ("BLOOM-176b", 4_014_080)],
)
def test_kv_bytes_of_known_models(model: str, bytes_per_token: int) -> None:
    assert MODELS[model].kv_bytes_per_token == bytes_per_token


def test_the_computed_kv_size_meets_the_fitted_ones() -> None:
    """42,000 and 56,000 tokens were fitted to, and read off, measured runs: the formula is within 3 and 10 percent."""
    assert kv_capacity_tokens("Llama-3.1-8B", "RTX 4090 24GB") == pytest.approx(42_000, rel=0.03)
    assert kv_capacity_tokens("OPT-13B", "A100 80GB") == pytest.approx(56_000, rel=0.10)


def test_kv_is_what_the_weights_leave_in_whole_blocks() -> None:
    one, four = (kv_capacity_tokens("Llama-2-7b", "A100 80GB", gpus) for gpus in (1, 4))
    free = 0.9 * 81_920 * 1_048_576 - 1.5e9 - 2 * 6.738e9
    assert one == math.floor(free / 524_288 / 16) * 16
    assert four > 4 * one
    with pytest.raises(ValueError, match="leaves no room"):
        kv_capacity_tokens("Llama-2-70b", "A100 80GB")
    with pytest.raises(KeyError):
        kv_capacity_tokens("Llama-2-7b", "TPU")


@pytest.mark.parametrize("gpu", ["a100", "h100"])
def test_more_gpus_are_faster_and_hold_more(gpu: str) -> None:
    two, four, eight = (PROFILES[f"llama-2-70b-{gpu}-tp{gpus}"] for gpus in (2, 4, 8))
    assert two.base_decode_s > four.base_decode_s > eight.base_decode_s
    assert two.prefill_s_per_token > four.prefill_s_per_token > eight.prefill_s_per_token
    assert two.kv_tokens < four.kv_tokens < eight.kv_tokens


@pytest.mark.parametrize("name", ["llama-2-70b-{}-tp4", "llama-3-8b-{}", "llama-2-70b-{}-tp4-splitwise"])
def test_an_h100_is_faster_than_an_a100(name: str) -> None:
    older, newer = (PROFILES[name.format(gpu)] for gpu in ("a100", "h100"))
    assert newer.base_decode_s < older.base_decode_s
    assert newer.prefill_s_per_token < older.prefill_s_per_token


def test_kernel_sums_agree_with_measured_requests() -> None:
    """A decode step of Llama-2-7b on H100 with 8 sequences of 500 tokens, and a prefill of 2,000, both within 10 %."""

    def decode_s(name: str) -> float:
        one = PROFILES[name]
        return one.base_decode_s + 8 * one.sequence_s + 4_000 * one.context_s_per_token

    def prefill_s(name: str) -> float:
        one = PROFILES[name]
        return one.base_prefill_s + 2_000 * one.prefill_s_per_token + 4e6 * one.prefill_s_per_token_squared

    for what in (decode_s, prefill_s):
        assert what("llama-2-7b-h100-kernels") == pytest.approx(what("llama-2-7b-h100"), rel=0.1)
    assert decode_s("llama-3-8b-a100") == pytest.approx(decode_s("llama-3.1-8b-a100"), rel=0.1)


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("base_decode_s", 0.0),
        ("base_decode_s", float("nan")),
        ("base_prefill_s", -1e-3),
        ("prefill_s_per_token", float("inf")),
        ("sequence_s", -1e-9),
        ("kv_tokens", 15),
        ("kv_tokens", -16),
        ("max_sequences", 0),
        ("token_budget", 0),
        ("block_tokens", 0),
    ],
)
def test_a_profile_with_impossible_numbers_is_refused(field: str, bad: float) -> None:
    changes: dict[str, Any] = {field: bad, "mode": EngineMode.PREFILL_FIRST}
    with pytest.raises(InvalidInputError, match=f"profile h100-mix: {field} must be"):
        EngineModel(replace(H100_MIX, **changes))


def test_the_table_in_the_docs_is_that_of_the_profiles() -> None:
    text = DOC.read_text(encoding="utf-8")
    assert [row for row in rows() if row not in text] == []
