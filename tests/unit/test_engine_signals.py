"""What engines say of themselves, each in its own names, as recorded text."""

from __future__ import annotations

import pytest

from llmrouter.domain import EngineSignal
from router_grpc.adapters.engine_metrics import parse_signal

VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="llama"} 3.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="llama"} 2.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="llama"} 0.25
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="llama"} 12.0
"""

SGLANG = """# HELP sglang:num_running_reqs The number of running requests.
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="llama",pp_rank="0",tp_rank="0"} 3.0
# HELP sglang:num_used_tokens The number of used tokens.
# TYPE sglang:num_used_tokens gauge
sglang:num_used_tokens{engine_type="unified",model_name="llama",pp_rank="0",tp_rank="0"} 123859.0
# HELP sglang:token_usage The token usage.
# TYPE sglang:token_usage gauge
sglang:token_usage{engine_type="unified",model_name="llama",pp_rank="0",tp_rank="0"} 0.25
# HELP sglang:num_queue_reqs The number of requests in the waiting queue.
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{engine_type="unified",model_name="llama",pp_rank="0",tp_rank="0"} 2.0
"""

TRTLLM = """# TYPE trtllm_num_requests_running gauge
trtllm_num_requests_running{engine_type="trtllm",model_name="llama"} 3.0
# TYPE trtllm_num_requests_waiting gauge
trtllm_num_requests_waiting{engine_type="trtllm",model_name="llama"} 2.0
# TYPE trtllm_kv_cache_utilization gauge
trtllm_kv_cache_utilization{engine_type="trtllm",model_name="llama"} 0.25
"""

TRITON = """# HELP nv_trt_llm_request_metrics TRT LLM request metrics
# TYPE nv_trt_llm_request_metrics gauge
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 2
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="context",version="1"} 1
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="scheduled",version="1"} 3
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 512
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"} 5
# HELP nv_trt_llm_kv_cache_block_metrics TRT LLM KV cache block metrics
# TYPE nv_trt_llm_kv_cache_block_metrics gauge
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="tensorrt_llm",version="1"} 0.25
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="tokens_per",model="tensorrt_llm",version="1"} 64
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="tensorrt_llm",version="1"} 6239
"""

ENGINES = {
    "vllm": VLLM,
    "vllm before 0.10": VLLM.replace("kv_cache_usage_perc", "gpu_cache_usage_perc"),
    "sglang": SGLANG,
    "sglang since 0.5.4": SGLANG.replace("sglang:", "sglang_"),
    "trtllm-serve": TRTLLM,
    "triton": TRITON,
}


@pytest.mark.parametrize("engine", ENGINES)
def test_each_says_the_same_in_its_own_names(engine: str) -> None:
    signal = parse_signal(ENGINES[engine], scraped_at_s=5.0)
    assert (signal.running, signal.waiting, signal.kv_usage_fraction) == (3, 2, 0.25)
    assert signal.preemptions_total == (12 if engine.startswith("vllm") else None)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_one_leaves_out_is_unknown_and_not_zero(engine: str) -> None:
    lines = ENGINES[engine].splitlines(keepends=True)
    fewer = "".join(line for line in lines if "waiting" not in line and "queue" not in line)
    signal = parse_signal(fewer, scraped_at_s=5.0)
    assert (signal.running, signal.waiting) == (3, None)


def test_ranks_are_summed_and_usage_is_their_mean() -> None:
    ranks = SGLANG + SGLANG.replace('tp_rank="0"', 'tp_rank="0",dp_rank="1"').replace("0.25", "0.75")
    signal = parse_signal(ranks, scraped_at_s=5.0)
    assert (signal.running, signal.waiting, signal.kv_usage_fraction) == (6, 4, 0.5)


@pytest.mark.parametrize("text", ["", "up 1\n", "# nothing\n", 'nv_trt_llm_request_metrics{request_type="max"} 512\n'])
def test_another_program_says_nothing(text: str) -> None:
    assert parse_signal(text, scraped_at_s=1.0) == EngineSignal(1.0)


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1", "x", ""])
@pytest.mark.parametrize("name", ["vllm:num_requests_running", "sglang:token_usage", "trtllm_num_requests_waiting"])
def test_what_is_no_number_is_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_signal(f"{name} {value}\n", scraped_at_s=1.0)
