from __future__ import annotations

import math

import numpy as np
import pytest

from llmrouter.lengths.prompt_tokens import (
    CLASSES,
    PRIOR_TOKENS,
    PromptTokens,
    TokenReportRefusal,
    character_counts,
)

WORDS = "The quick brown fox jumps over the lazy dog, then rests; 42 others watch (quietly)."


def prompts(count: int) -> list[str]:
    rng = np.random.default_rng(2)
    pieces = ["lorem ipsum ", "Foo(bar[3]) == {baz}; ", "12345 67.89 ", "東京都渋谷区", "Привет мир ", "\n\n    "]
    return ["".join(rng.choice(pieces, rng.integers(3, 30))) for _ in range(count)]


class TestCounting:
    def test_each_class(self) -> None:
        counted = dict(zip(CLASSES, character_counts("Hi you 2!\n\n\t東é").tolist(), strict=True))
        assert list(counted.values()) == [1, 2, 5, 1, 1, 1, 3, 1, 1]

    @pytest.mark.parametrize("prompt", ["", "\ud800", "\x00" * 50, "🙂" * 9, " " * 4_000])
    def test_strange_prompts_have_at_least_one_token(self, prompt: str) -> None:
        assert PromptTokens().estimate(prompt) >= 1

    def test_a_long_prompt_is_scaled_up(self) -> None:
        short, long = PromptTokens().estimate(WORDS * 100), PromptTokens().estimate(WORDS * 100_000)
        assert long == pytest.approx(1_000 * short, rel=0.02)

    def test_english_has_about_four_characters_a_token(self) -> None:
        assert PromptTokens().estimate(WORDS) == pytest.approx(len(WORDS) / 4, rel=0.3)


class TestLearning:
    def test_the_weights_of_a_tokenizer_are_found(self) -> None:
        truth = np.array([12.0, 1.3, 0.02, 0.1, 0.4, 0.9, 0.1, 1.9, 0.8])
        tokens = PromptTokens()
        errors = []
        for prompt in prompts(300):
            real = float(character_counts(prompt) @ truth)
            errors.append(abs(tokens.estimate(prompt, "m") / real - 1.0))
            assert tokens.learn(prompt, real, "m") is None
        assert np.median(errors[:5]) > 0.05
        assert np.median(errors[100:]) < 0.02

    def test_characters_alone_teach_as_the_text_does(self) -> None:
        by_text, by_counts = PromptTokens(), PromptTokens()
        for place, prompt in enumerate(prompts(50)):
            by_text.learn(prompt, 20 + place, "m")
            by_counts.learn_counts(character_counts(prompt), 20 + place, "m")
            by_counts.learn_from(by_counts.count("never", "other"), 0)
        assert by_counts.weights("m") == pytest.approx(by_text.weights("m"), rel=1e-12)

    @pytest.mark.parametrize("text", [WORDS * 40, "a " * 2_000, "x" * 4_000, "東京" * 2_000, " " * 4_000])
    def test_bounds_of_reports_are_near_those_of_the_text(self, text: str) -> None:
        counts = character_counts(text)
        tokens = PromptTokens()
        assert tokens.learn_counts(counts, len(text) / 64 + 1) is None
        assert tokens.learn_counts(counts, 4 * len(text)) is None
        assert tokens.learn_counts(counts, len(text) / 64 / 2.1) is TokenReportRefusal.TOO_SMALL
        assert tokens.learn_counts(counts, 2.1 * 4 * len(text) + 8_192) is TokenReportRefusal.TOO_LARGE

    def test_an_excerpt_is_scaled_up_and_taught_as_the_whole(self) -> None:
        part, whole = PromptTokens(), PromptTokens()
        for reported in (9_000, 9_100, 9_200):
            part.learn_from(part.count(WORDS * 20, "m", share=0.05), reported)
            whole.learn_from(whole.count(WORDS * 400, "m"), reported)
        assert part.estimate(WORDS * 300, "m") == pytest.approx(whole.estimate(WORDS * 300, "m"), rel=0.02)

    def test_models_are_told_apart_and_bounded(self) -> None:
        tokens = PromptTokens(models=8)
        for place in range(100):
            tokens.learn(WORDS, 30, f"model {place}")
        assert len(tokens) == 8
        assert tokens.weights("never seen") == pytest.approx(PRIOR_TOKENS)

    @pytest.mark.parametrize(
        ("reported", "reason"),
        [
            (0, TokenReportRefusal.NOT_POSITIVE),
            (-3, TokenReportRefusal.NOT_POSITIVE),
            (math.nan, TokenReportRefusal.NOT_A_NUMBER),
            (10**9, TokenReportRefusal.TOO_LARGE),
            (math.inf, TokenReportRefusal.TOO_LARGE),
            (1, TokenReportRefusal.TOO_SMALL),
        ],
    )
    def test_lies_are_refused_and_counted(self, reported: float, reason: TokenReportRefusal) -> None:
        tokens = PromptTokens()
        assert tokens.learn(WORDS * 5, reported, "m") is reason
        assert tokens.refused == {reason: 1}
        assert len(tokens) == 0

    def test_plausible_lies_move_it_within_bounds(self) -> None:
        tokens = PromptTokens()
        for place in range(3_000):
            tokens.learn(WORDS, 8_000 if place % 2 else 3, "m")
        weights = tokens.weights("m")
        assert np.isfinite(weights).all()
        assert ((weights >= 0.0) & (weights <= [8_192.0, *[4.0] * 8])).all()

    def test_it_finds_back_after_lies(self) -> None:
        tokens = PromptTokens()
        for prompt in prompts(200):
            tokens.learn(prompt, 4_000, "m")
        for prompt in prompts(400):
            tokens.learn(prompt, float(character_counts(prompt) @ PRIOR_TOKENS), "m")
        assert tokens.estimate(WORDS, "m") == pytest.approx(PromptTokens().estimate(WORDS), rel=0.25)
