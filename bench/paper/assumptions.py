"""Every choice that the paper leaves open and a run must make, in one place: the value, and why this one."""

from __future__ import annotations

from dataclasses import dataclass

V100_TICK_S = 0.02
A100_TICK_S = 0.012
A100_REQUESTS = 8_000
A100_CHUNK_TOKENS = 512
MIXING_SEQUENCES = 21
TWO_INSTANCE_RPS = 40.0
LIGHT_PROMPT_TOKENS = 15
HEAVY_PROMPT_TOKENS = 700
LIGHT_OUTPUT_TOKENS = 100
HEAVY_OUTPUT_TOKENS = 190
HEAVY_DECODE_SHARE = 0.55


@dataclass(frozen=True, slots=True)
class Assumption:
    """One inferred choice."""

    subject: str
    choice: str
    why: str


ASSUMPTIONS = (
    Assumption(
        "end-to-end latency",
        "the time from the first arrival to the last finish of a run",
        "the text says latency for servicing all requests; 168 s cannot be a mean when requests arrive over 100 s",
    ),
    Assumption(
        "arrivals",
        "Poisson, router and engines empty at the start, nothing left out as warm-up",
        "the paper prints an average rate and episodes of 2,000 requests",
    ),
    Assumption(
        "request lengths",
        "log-normal by task, with the means and shares of heavy decodes of its Table 1; outputs end at 1,024",
        "the data are public, the answers of its Llama-2 are not; 175.7 is the printed mean",
    ),
    Assumption(
        "V100 engine",
        "profile paper-v100: 1,200 KV blocks, of which an admission leaves 12 free; whole prompts in steps of their "
        "own; preemption by recompute of the youngest",
        "fitted to the paper's step times (see the mixing table); its KV size is not printed; a hundredth is the "
        "default watermark of the vLLM of that time: the variations show that much hangs on it",
    ),
    Assumption(
        "router",
        f"one request, the oldest, every {V100_TICK_S} s (printed); every {A100_TICK_S} s in front of A100s",
        "0.02 s is printed as the shortest decode step, and 80 requests a second need more than 50 actions; "
        "the shortest decode step of the A100 profile is 0.012 s",
    ),
    Assumption(
        "JSQ",
        "fewest prompt and output tokens left, outputs by the predicted bucket's mean length",
        "the paper does not say which lengths it counts; true lengths stand in a row of their own",
    ),
    Assumption(
        "max-capacity",
        "largest free share of KV, chosen anew once a second, for all requests of that second; never waits",
        "one request a second, as the words could also mean, would take 2,000 s; with the condition that the request "
        "must fit, as the words say too, it is the row with the KV gate",
    ),
    Assumption(
        "min-min",
        "the oldest request to its earliest completion by the upper bound of its predicted bucket",
        "only the head of the queue is considered; the paper calls it similar to shortest job first, which would need "
        "a choice among the waiting",
    ),
    Assumption(
        "decode balancer",
        "fewest true output tokens left on the instance",
        "the paper balances the sum of decode tokens, left or ever assigned it does not say",
    ),
    Assumption(
        "bucket predictor",
        "right as often as Table 1 says for the task; a wrong answer is either other bucket alike",
        "the confusion matrix is not printed",
    ),
    Assumption(
        "A100 engine",
        "profile llama-3-8b-a100 (kernel times), 4 instances, 128 sequences, prompts in steps of their own; "
        f"with chunked prefill {A100_CHUNK_TOKENS} tokens a step",
        "hardware and model are printed, step times are not; 128 is its maximum batch, 512 was vLLM's default chunk",
    ),
    Assumption(
        "A100 requests",
        f"{A100_REQUESTS}, with the same lengths as before",
        "its plots end at 100 s, which are 8,000 arrivals, and 715 prompt tokens/s of an instance over 248 s are 8,000 "
        "prompts of 89; read as the sum of four instances they are 2,000 prompts: that is a variation below",
    ),
    Assumption(
        "production trace",
        "lengths of the benchmark's cell h100-prod, 80 requests/s, 4 A100 instances, 1,024-token chunks, "
        "output lengths by the right bucket 79 % of the time",
        "rate, model, chunk, means and accuracy are printed; hardware and number of instances are not",
    ),
    Assumption(
        "step time by context",
        f"a batch of {MIXING_SEQUENCES} sequences",
        "34.2 ms without context are the profile's base and 21 sequences; a lone request steps twice as fast",
    ),
    Assumption(
        "two-instance mixes",
        f"every class has one length: prompts of {LIGHT_PROMPT_TOKENS} or {HEAVY_PROMPT_TOKENS} tokens, outputs of "
        f"{LIGHT_OUTPUT_TOKENS} or {HEAVY_OUTPUT_TOKENS}; {HEAVY_DECODE_SHARE:.0%} are LH where there are two classes, "
        f"four are equally frequent; {TWO_INSTANCE_RPS:g} requests/s",
        "nothing of it is printed; one length per class explains why sorted arrivals finish alike under every "
        "in-engine order; lengths, share and rate are the best of a random search against the eight first-come totals "
        "of Dedicated and RoundRobin; a prompt of 0.5 s, the paper's heavy one, has 1,563 tokens: 1,500 of them on one "
        "instance would take 750 s, longer than any total in the table",
    ),
    Assumption(
        "in-engine orders",
        "the simulator's: least work left counts prompt and output tokens, bin packing the prompt; a request that lost "
        "its KV competes again",
        "the paper's least work left counts decode tokens alone; its batching is called non-preemptive",
    ),
)
