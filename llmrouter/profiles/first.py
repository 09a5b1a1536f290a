"""The profiles that the demo, the shipped models and the benchmark's cells use."""

from __future__ import annotations

from llmrouter.domain import EngineMode, EngineProfile
from llmrouter.profiles.source import Basis, KnownProfile

LLAMA_31_8B_RTX_4090 = EngineProfile(
    name="llama-3.1-8b-rtx4090",
    base_decode_s=17.3e-3,
    base_prefill_s=15.1e-3,
    prefill_s_per_token=56.6e-6,
    prefill_s_per_token_squared=19.7e-9,
    context_s_per_token=148e-9,
    sequence_s=41e-6,
    kv_tokens=42_000,
    max_sequences=256,
    token_budget=2_048,
    mode=EngineMode.CHUNKED,
)
"""Llama-3.1-8B on an RTX 4090 (24 GB), vLLM 0.19.

Fitted to per-request latencies measured by casys-kaist/LLMServingSim (5daddb21a545, MIT). The KV size is fitted too;
(0.9 · 24 GB - 16 GB of weights) / 131,072 B per token gives 42,724.
"""

LLAMA_31_8B_RTX_PRO_6000 = EngineProfile(
    name="llama-3.1-8b-rtx-pro-6000",
    base_decode_s=13.8e-3,
    base_prefill_s=13.1e-3,
    prefill_s_per_token=27.8e-6,
    prefill_s_per_token_squared=7.6e-9,
    context_s_per_token=85e-9,
    sequence_s=23e-6,
    kv_tokens=537_104,
    max_sequences=128,
    token_budget=2_048,
    mode=EngineMode.CHUNKED,
)
"""Llama-3.1-8B on an RTX PRO 6000 (96 GB), vLLM 0.19 with asynchronous scheduling.

Fitted to per-request latencies measured by casys-kaist/LLMServingSim (5daddb21a545, MIT). KV never bound in those runs,
so its size is computed: (0.9 · 96 GB - 16 GB of weights) / 131,072 B per token, in whole blocks.
"""

OPT_13B_A100 = EngineProfile(
    name="opt-13b-a100",
    base_decode_s=24.9e-3,
    base_prefill_s=20.6e-3,
    prefill_s_per_token=122.9e-6,
    prefill_s_per_token_squared=8.6e-9,
    context_s_per_token=851e-9,
    sequence_s=57e-6,
    kv_tokens=56_000,
    max_sequences=256,
    token_budget=2_048,
    mode=EngineMode.PREFILL_FIRST,
)
"""OPT-13B on an A100-80G, the vLLM of the DistServe paper.

Fitted to its runs of 1 and 1.5 requests a second (LLMServe/DistServe 20a1633, Apache-2.0); the KV size is read off
saturated runs.
"""

PAPER_V100 = EngineProfile(
    name="paper-v100",
    base_decode_s=15.5e-3,
    base_prefill_s=15.5e-3,
    prefill_s_per_token=3.2e-4,
    context_s_per_token=6.0e-7,
    sequence_s=9e-4,
    kv_tokens=1_200 * 16,
    max_sequences=128,
    token_budget=4_096,
    mode=EngineMode.PREFILL_FIRST,
)
"""Llama-2-7b on a V100, synthetic: calibrated to the figures printed in arXiv 2408.13510 v2."""

H100_MIX = EngineProfile(
    name="h100-mix",
    base_decode_s=6.5e-3,
    base_prefill_s=6.5e-3,
    prefill_s_per_token=2.3e-5,
    context_s_per_token=5.0e-8,
    sequence_s=2.0e-5,
    kv_tokens=25_000 * 16,
    max_sequences=256,
    token_budget=2_048,
    mode=EngineMode.CHUNKED,
)
"""An 8B model on an H100, synthetic: rounded from kernel times of microsoft/vidur (7d47513363ec, MIT)."""

FIRST = (
    KnownProfile(
        profile=LLAMA_31_8B_RTX_4090,
        model="Llama-3.1-8B",
        gpu="RTX 4090 24GB",
        engine="vLLM 0.19",
        basis=Basis.FITTED,
        source="casys-kaist/LLMServingSim 5daddb21a545",
        licence="MIT",
        note="one overloaded run of 300 requests",
    ),
    KnownProfile(
        profile=LLAMA_31_8B_RTX_PRO_6000,
        model="Llama-3.1-8B",
        gpu="RTX PRO 6000 96GB",
        engine="vLLM 0.19, asynchronous scheduling",
        basis=Basis.FITTED,
        source="casys-kaist/LLMServingSim 5daddb21a545",
        licence="MIT",
        note="one overloaded run of 300 requests",
    ),
    KnownProfile(
        profile=OPT_13B_A100,
        model="OPT-13B",
        gpu="A100 80GB",
        engine="the vLLM of the DistServe paper",
        basis=Basis.FITTED,
        source="LLMServe/DistServe 20a1633",
        licence="Apache-2.0",
        note="runs of 1 and 1.5 requests a second",
    ),
    KnownProfile(
        profile=PAPER_V100,
        model="Llama-2-7b",
        gpu="V100 32GB",
        engine="the vLLM of the paper",
        basis=Basis.PRINTED,
        source="arXiv 2408.13510 v2",
        licence="",
        note="synthetic",
    ),
    KnownProfile(
        profile=H100_MIX,
        model="Llama-3-8B",
        gpu="H100 80GB",
        engine="vLLM V1",
        basis=Basis.ROUNDED,
        source="microsoft/vidur 7d47513363ec",
        licence="MIT",
        note="synthetic",
    ),
)
"""The same with their origin."""
