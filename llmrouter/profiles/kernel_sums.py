"""Profiles from kernel times: GPU types and degrees of tensor parallelism for which no engine run was recorded.

Linear layers of microsoft/vidur (7d47513363ec, MIT; for H100 Llama-3-8B Archer222arc/Vidurrl, a7033910053d, MIT) plus
attention and the last linear layer of ai-dynamo/aiconfigurator (095f58a51c4c, Apache-2.0: vLLM 0.14), summed over a
model's layers and fitted by non-negative least squares on relative errors.

A decode step was fitted as ``a + b·sequences + c·context tokens``: base, sequence and context coefficients as they are.
A prefill was fitted as ``max(floor, a + b·n + c·n²)``, the floor being the time to read the weights; it rules prompts
of fewer than 75 to 170 tokens that are computed alone. A mixed step takes at least ``base_decode_s``, about as long.

Kernels leave out the host: its time was added to both bases, 0.9 ms on A100 (11.9 ms a token measured for Llama-3.1-8B
at light load where the kernels sum to 10.98) and 0.3 ms on H100 (6.29 ms measured for Llama-2-7b, 6.00 summed). The
all-reduce of tensor parallelism is not in the sums: above one GPU they are short by what it takes.
"""

from __future__ import annotations

from llmrouter.domain import EngineMode, EngineProfile
from llmrouter.profiles.source import Basis, KnownProfile, kv_capacity_tokens

_HOST_S = {"A100 80GB": 0.9e-3, "H100 80GB": 0.3e-3}
_SOURCE = "microsoft/vidur 7d47513363ec; ai-dynamo/aiconfigurator 095f58a51c4c"
_NEW_SOURCE = "Archer222arc/Vidurrl a7033910053d; ai-dynamo/aiconfigurator 095f58a51c4c"
_LICENCE = "MIT; Apache-2.0"


def _known(
    name: str,
    model: str,
    gpu: str,
    *,
    decode: tuple[float, float, float],
    prefill: tuple[float, float, float, float],
    gpus: int = 1,
    source: str = _SOURCE,
) -> KnownProfile:
    """``decode``: base, per sequence, per context token; ``prefill``: base, per token, per token squared, floor.

    All in seconds.
    """
    host_s = _HOST_S[gpu]
    return KnownProfile(
        profile=EngineProfile(
            name=name,
            base_decode_s=round(decode[0] + host_s, 8),
            base_prefill_s=round(prefill[0] + host_s, 8),
            prefill_s_per_token=prefill[1],
            prefill_s_per_token_squared=prefill[2],
            prefill_floor_s=round(prefill[3] + host_s, 8),
            context_s_per_token=decode[2],
            sequence_s=decode[1],
            kv_tokens=kv_capacity_tokens(model, gpu, gpus),
            max_sequences=256,
            token_budget=2_048,
            mode=EngineMode.CHUNKED,
        ),
        model=model,
        gpu=gpu,
        gpus=gpus,
        engine="vLLM V1 defaults",
        basis=Basis.KERNELS,
        source=source,
        licence=_LICENCE,
        note="no all-reduce" if gpus > 1 else "",
    )


KERNEL_SUMS = (
    _known(
        "llama-2-7b-a100",
        "Llama-2-7b",
        "A100 80GB",
        decode=(9.632e-3, 3.8894e-5, 3.0516e-7),
        prefill=(1.8303e-3, 6.3201e-5, 2.1555e-9, 10.18e-3),
    ),
    _known(
        "llama-2-7b-h100-kernels",
        "Llama-2-7b",
        "H100 80GB",
        decode=(5.9964e-3, 2.4996e-5, 1.5461e-7),
        prefill=(5.047e-3, 1.7039e-5, 1.5339e-9, 6.346e-3),
    ),
    _known(
        "llama-3-8b-a100",
        "Llama-3-8B",
        "A100 80GB",
        decode=(10.982e-3, 3.8786e-5, 7.8717e-8),
        prefill=(2.3673e-3, 7.0727e-5, 8.3061e-10, 12.01e-3),
    ),
    _known(
        "llama-3-8b-h100",
        "Llama-3-8B",
        "H100 80GB",
        decode=(6.5369e-3, 1.2826e-5, 4.0274e-8),
        prefill=(4.0704e-3, 1.9067e-5, 1.198e-9, 7.007e-3),
        source=_NEW_SOURCE,
    ),
    _known(
        "llama-2-70b-a100-tp2",
        "Llama-2-70b",
        "A100 80GB",
        gpus=2,
        decode=(45.977e-3, 1.6224e-4, 9.0124e-8),
        prefill=(11.412e-3, 3.285e-4, 0.0, 52.47e-3),
    ),
    _known(
        "llama-2-70b-a100-tp4",
        "Llama-2-70b",
        "A100 80GB",
        gpus=4,
        decode=(25.728e-3, 9.2382e-5, 5.1199e-8),
        prefill=(7.0263e-3, 1.7023e-4, 0.0, 28.24e-3),
    ),
    _known(
        "llama-2-70b-a100-tp8",
        "Llama-2-70b",
        "A100 80GB",
        gpus=8,
        decode=(15.101e-3, 5.1557e-5, 2.8858e-8),
        prefill=(8.8622e-3, 8.3831e-5, 2.0412e-9, 15.76e-3),
    ),
    _known(
        "llama-2-70b-h100-tp2",
        "Llama-2-70b",
        "H100 80GB",
        gpus=2,
        decode=(26.711e-3, 3.5394e-5, 7.2691e-8),
        prefill=(12.636e-3, 1.0793e-4, 7.2029e-10, 31.09e-3),
    ),
    _known(
        "llama-2-70b-h100-tp4",
        "Llama-2-70b",
        "H100 80GB",
        gpus=4,
        decode=(15.658e-3, 2.1863e-5, 2.6333e-8),
        prefill=(8.8854e-3, 5.2883e-5, 1.2796e-9, 17.62e-3),
    ),
    _known(
        "llama-2-70b-h100-tp8",
        "Llama-2-70b",
        "H100 80GB",
        gpus=8,
        decode=(9.4931e-3, 1.717e-5, 1.433e-8),
        prefill=(5.4003e-3, 3.109e-5, 4.053e-11, 10.52e-3),
    ),
)
