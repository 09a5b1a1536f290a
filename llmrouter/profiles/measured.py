"""Profiles fitted to engines that somebody ran: per-request latencies, or tables of whole prefills and decode steps.

Those of ``Basis.FITTED`` carry all that a step costs there; their single coefficients are weakly identified, about 3 %.
"""

from __future__ import annotations

from llmrouter.domain import EngineMode, EngineProfile
from llmrouter.profiles.source import Basis, KnownProfile, kv_capacity_tokens

_BLIS = "inference-sim/inference-sim d9f61a2d"
_LMBENCH = "llm-d/llm-d-benchmark 3262be2c"
_SPLITWISE = "Mutinifni/splitwise-sim 8f99e7dc9b40"

LLAMA_2_7B_H100 = KnownProfile(
    profile=EngineProfile(
        name="llama-2-7b-h100",
        base_decode_s=6.29e-3,
        base_prefill_s=5.40e-3,
        prefill_s_per_token=16.5e-6,
        prefill_s_per_token_squared=1.54e-9,
        context_s_per_token=171e-9,
        sequence_s=21e-6,
        kv_tokens=kv_capacity_tokens("Llama-2-7b", "H100 80GB"),
        max_sequences=256,
        token_budget=4_096,
        mode=EngineMode.CHUNKED,
    ),
    model="Llama-2-7b",
    gpu="H100 80GB",
    engine="vLLM 0.11",
    basis=Basis.FITTED,
    source=_BLIS,
    licence="Apache-2.0",
    note="the record names no GPU: an H100 by its speed; kernel sums differ by 5 % a decode step",
    front_s=1.7e-3,
)

CODELLAMA_34B_H100 = KnownProfile(
    profile=EngineProfile(
        name="codellama-34b-h100",
        base_decode_s=25.7e-3,
        base_prefill_s=3.35e-3,
        prefill_s_per_token=99.5e-6,
        prefill_s_per_token_squared=1.0e-9,
        context_s_per_token=65.6e-9,
        sequence_s=90e-6,
        kv_tokens=kv_capacity_tokens("CodeLlama-34b", "H100 80GB"),
        max_sequences=256,
        token_budget=4_096,
        mode=EngineMode.CHUNKED,
    ),
    model="CodeLlama-34b",
    gpu="H100 80GB",
    engine="vLLM 0.11",
    basis=Basis.FITTED,
    source=_BLIS,
    licence="Apache-2.0",
    note="the record names neither GPU nor tensor parallelism: one H100 by its speed",
    front_s=1.8e-3,
)

LLAMA_31_8B_A100 = KnownProfile(
    profile=EngineProfile(
        name="llama-3.1-8b-a100",
        base_decode_s=11.8e-3,
        base_prefill_s=11.4e-3,
        prefill_s_per_token=50e-6,
        prefill_s_per_token_squared=1.0e-9,
        context_s_per_token=104e-9,
        sequence_s=43e-6,
        kv_tokens=kv_capacity_tokens("Llama-3.1-8B", "A100 80GB"),
        max_sequences=256,
        token_budget=2_048,
        mode=EngineMode.CHUNKED,
    ),
    model="Llama-3.1-8B",
    gpu="A100 80GB",
    engine="vLLM behind Kubernetes",
    basis=Basis.FITTED,
    source=_LMBENCH,
    licence="Apache-2.0",
    note="two replicas, prefix caching on: fitted together with an uncached share of .32 of the prompts",
    front_s=12e-3,
)

LLAMA_31_70B_A100_TP2 = KnownProfile(
    profile=EngineProfile(
        name="llama-3.1-70b-a100-tp2",
        base_decode_s=50.4e-3,
        base_prefill_s=43.2e-3,
        prefill_s_per_token=360e-6,
        prefill_s_per_token_squared=1.1e-9,
        context_s_per_token=84e-9,
        sequence_s=222e-6,
        kv_tokens=kv_capacity_tokens("Llama-3.1-70B", "A100 80GB", 2),
        max_sequences=256,
        token_budget=2_048,
        mode=EngineMode.CHUNKED,
    ),
    model="Llama-3.1-70B",
    gpu="A100 80GB",
    gpus=2,
    engine="vLLM behind Kubernetes",
    basis=Basis.FITTED,
    source=_LMBENCH,
    licence="Apache-2.0",
    note="prefix caching on: fitted together with an uncached share of .83 of the prompts",
    front_s=19e-3,
)

QWEN3_32B_RTX_PRO_6000_TP2 = KnownProfile(
    profile=EngineProfile(
        name="qwen3-32b-rtx-pro-6000-tp2",
        base_decode_s=28.6e-3,
        base_prefill_s=66.9e-3,
        prefill_s_per_token=132.1e-6,
        prefill_s_per_token_squared=6.3e-9,
        context_s_per_token=143e-9,
        sequence_s=86e-6,
        kv_tokens=kv_capacity_tokens("Qwen3-32B", "RTX PRO 6000 96GB", 2),
        max_sequences=128,
        token_budget=2_048,
        mode=EngineMode.CHUNKED,
    ),
    model="Qwen3-32B",
    gpu="RTX PRO 6000 96GB",
    gpus=2,
    engine="vLLM 0.19",
    basis=Basis.FITTED,
    source="casys-kaist/LLMServingSim 5daddb21a545",
    licence="MIT",
    note="one overloaded run of 300 requests",
)

LLAMA_2_7B_A10G_SLORA = KnownProfile(
    profile=EngineProfile(
        name="llama-2-7b-a10g-slora",
        base_decode_s=27.9e-3,
        base_prefill_s=82.1e-3,
        prefill_s_per_token=252e-6,
        prefill_s_per_token_squared=1.1e-9,
        context_s_per_token=1_049e-9,
        sequence_s=122e-6,
        kv_tokens=10_000,
        max_sequences=256,
        token_budget=10_000,
        mode=EngineMode.PREFILL_FIRST,
    ),
    model="Llama-2-7b",
    gpu="A10G 24GB",
    engine="S-LoRA",
    basis=Basis.FITTED,
    source="Ying1123/VTC-artifact 192c2e2014c6",
    licence="Apache-2.0",
    note="a KV pool of 10,000 tokens, less 32 per active adapter; the engine prefills after every tenth decode step, "
    "admits what fits in the worst case, and takes 1 ms more per prefilled sequence",
    front_s=5e-3,
)


def _splitwise(
    name: str,
    model: str,
    gpu: str,
    gpus: int,
    *,
    decode: tuple[float, float, float],
    prefill: tuple[float, float, float],
) -> KnownProfile:
    """``decode``: base, per sequence, per context token; ``prefill``: base, per token, per Σ tokens²; all in s."""
    return KnownProfile(
        profile=EngineProfile(
            name=name,
            base_decode_s=decode[0],
            base_prefill_s=prefill[0],
            prefill_s_per_token=prefill[1],
            prefill_s_per_token_squared=prefill[2],
            context_s_per_token=decode[2],
            sequence_s=decode[1],
            kv_tokens=kv_capacity_tokens(model, gpu, gpus),
            max_sequences=256,
            token_budget=2_048,
            mode=EngineMode.PREFILL_FIRST,
        ),
        model=model,
        gpu=gpu,
        gpus=gpus,
        engine="the vLLM of the Splitwise paper",
        basis=Basis.ENGINE,
        source=_SPLITWISE,
        licence="MIT",
        note="batches of 1 to 64, prompts of up to 8,192; prefill within 9 to 16 %, decode within 2 % (medians)",
    )


MEASURED = (
    LLAMA_2_7B_H100,
    LLAMA_31_8B_A100,
    LLAMA_31_70B_A100_TP2,
    CODELLAMA_34B_H100,
    QWEN3_32B_RTX_PRO_6000_TP2,
    LLAMA_2_7B_A10G_SLORA,
    _splitwise(
        "llama-2-70b-a100-tp4-splitwise",
        "Llama-2-70b",
        "A100 80GB",
        4,
        decode=(43.524e-3, 2.079e-4, 3.1764e-7),
        prefill=(24.141e-3, 2.2941e-4, 2.062e-9),
    ),
    _splitwise(
        "llama-2-70b-a100-tp8-splitwise",
        "Llama-2-70b",
        "A100 80GB",
        8,
        decode=(44.156e-3, 2.0005e-4, 3.0996e-7),
        prefill=(34.591e-3, 1.3266e-4, 4.8412e-9),
    ),
    _splitwise(
        "llama-2-70b-h100-tp4-splitwise",
        "Llama-2-70b",
        "H100 80GB",
        4,
        decode=(28.894e-3, 2.7205e-4, 7.8604e-8),
        prefill=(28.309e-3, 8.1733e-5, 3.9558e-9),
    ),
    _splitwise(
        "llama-2-70b-h100-tp8-splitwise",
        "Llama-2-70b",
        "H100 80GB",
        8,
        decode=(29.8e-3, 2.016e-4, 1.7776e-7),
        prefill=(32.917e-3, 5.2117e-5, 5.5489e-9),
    ),
    _splitwise(
        "bloom-176b-a100-tp8",
        "BLOOM-176b",
        "A100 80GB",
        8,
        decode=(48.026e-3, 4.4403e-4, 4.0245e-7),
        prefill=(38.775e-3, 2.5254e-4, 1.7915e-8),
    ),
    _splitwise(
        "bloom-176b-h100-tp8",
        "BLOOM-176b",
        "H100 80GB",
        8,
        decode=(35.572e-3, 3.0833e-4, 1.5718e-7),
        prefill=(25.133e-3, 1.0942e-4, 9.0196e-9),
    ),
)
