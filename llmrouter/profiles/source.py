"""Where a profile's numbers come from, and how large a KV cache its GPUs hold."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmrouter.domain import EngineProfile

MIB = 1_048_576
GPU_BYTES = {
    "A10G 24GB": 23_028 * MIB,
    "A100 80GB": 81_920 * MIB,
    "H100 80GB": 81_559 * MIB,
    "RTX 4090 24GB": 24_564 * MIB,
    "RTX PRO 6000 96GB": 97_887 * MIB,
    "V100 32GB": 32_768 * MIB,
}
"""Memory as the driver reports it."""

MEMORY_FRACTION = 0.9
"""vLLM's default for ``--gpu-memory-utilization``."""

ACTIVATION_BYTES = 1_500_000_000
"""Left per GPU for activations, logits and graphs. With it the formula gives 42,880 tokens for Llama-3.1-8B on an
RTX 4090, where 42,000 were fitted to measured runs."""

BLOCK_TOKENS = 16
BYTES_PER_PARAMETER = 2


class Basis(StrEnum):
    """What the step times of a profile rest on."""

    FITTED = "fitted to measured requests"
    ENGINE = "fitted to measured prefill and decode times of a whole engine"
    KERNELS = "sum of measured kernel times, plus a constant for the host"
    PRINTED = "calibrated to printed figures"
    ROUNDED = "rounded by hand"


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What of a model decides its memory. ``layers × kv_heads × head_size`` values of keys and as many of values."""

    parameters: float
    layers: int
    kv_heads: int
    head_size: int

    @property
    def weight_bytes(self) -> float:
        """At 16 bits a parameter."""
        return self.parameters * BYTES_PER_PARAMETER

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of all layers, 16 bits each."""
        return 2 * self.layers * self.kv_heads * self.head_size * BYTES_PER_PARAMETER


MODELS = {
    "Llama-2-7b": ModelSize(6.738e9, 32, 32, 128),
    "Llama-3-8B": ModelSize(8.030e9, 32, 8, 128),
    "Llama-3.1-8B": ModelSize(8.030e9, 32, 8, 128),
    "OPT-13B": ModelSize(12.853e9, 40, 40, 128),
    "Qwen3-32B": ModelSize(32.762e9, 64, 8, 128),
    "CodeLlama-34b": ModelSize(33.744e9, 48, 8, 128),
    "Llama-2-70b": ModelSize(68.977e9, 80, 8, 128),
    "Llama-3.1-70B": ModelSize(70.554e9, 80, 8, 128),
    "BLOOM-176b": ModelSize(176.247e9, 70, 112, 128),
}
"""Sizes as the models' configurations give them."""


def kv_capacity_tokens(model: str, gpu: str, gpus: int = 1) -> int:
    """Tokens of KV that fit, in whole blocks of 16.

    ``(0.9 · gpus · memory − weights − gpus · 1.5 GB) / (KV bytes per token)``; weights and KV are 16-bit. Tensor
    parallelism splits both, so the sum over the GPUs counts.

    Raises:
        KeyError: the model or the GPU is not known.
        ValueError: the weights leave no room.
    """
    size = MODELS[model]
    free = gpus * (MEMORY_FRACTION * GPU_BYTES[gpu] - ACTIVATION_BYTES) - size.weight_bytes
    blocks = int(free // (size.kv_bytes_per_token * BLOCK_TOKENS))
    if blocks < 1:
        raise ValueError(f"{model} leaves no room for KV on {gpus} × {gpu}")
    return blocks * BLOCK_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownProfile:
    """A profile with what is known of its origin.

    Attributes:
        profile: the numbers.
        model, gpu, gpus: what runs where; ``gpus`` above 1 is tensor parallel.
        engine: the engine that was measured, or whose defaults the limits are.
        basis: see ``Basis``.
        source: repository and commit, or the paper.
        licence: of the source.
        note: how the numbers came about, and what they lack.
        front_s, front_s_per_token: seconds a request spent before the engine's queue in those measurements.
    """

    profile: EngineProfile
    model: str
    gpu: str
    gpus: int = 1
    engine: str
    basis: Basis
    source: str
    licence: str
    note: str
    front_s: float = 0.0
    front_s_per_token: float = 0.0
