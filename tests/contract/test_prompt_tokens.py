"""One suite for whoever says how many tokens a prompt has; and what is particular to counting with a tokenizer."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest
from support.tokenizer_files import write_tokenizer
from tokenizers import Tokenizer

from llmrouter.lengths.prompt_tokens import PromptTokens, TokenReportRefusal
from router_grpc.adapters import tokenizers
from router_grpc.adapters.tokenizers import MAX_TEXT_BYTES, TokenCounter, TokenizedPrompts, load_tokenizers

if TYPE_CHECKING:
    from pathlib import Path

    from router_grpc.ports import PromptTokenCounter

MODEL = "llama"
PROMPT = "The quick fox calls me, or 42 dogs."
STRANGE = ["", " ", "\x00" * 50, "\ud800 alone", "🙂" * 9, "東京都", "<s> <s>", "a" * 10_000_000, "é" * MAX_TEXT_BYTES]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizers") / "tokenizer.json")


@pytest.fixture(scope="module")
def reference(file: Path) -> Tokenizer:
    return Tokenizer.from_file(str(file))


def exact(file: Path, *models: str) -> TokenizedPrompts:
    counters, problems = load_tokenizers(file.parent, dict.fromkeys(models or (MODEL,), file.name))
    assert problems == ()
    return TokenizedPrompts(PromptTokens(), counters)


@pytest.fixture(params=["estimated", "counted", "no tokenizer for the model"])
def counter(request: pytest.FixtureRequest, file: Path) -> PromptTokenCounter:
    made: dict[str, PromptTokenCounter] = {
        "estimated": PromptTokens(),
        "counted": exact(file),
        "no tokenizer for the model": exact(file, "other"),
    }
    return made[request.param]


class TestEveryCounter:
    @pytest.mark.parametrize("prompt", STRANGE, ids=range(len(STRANGE)))
    def test_any_prompt_has_at_least_one_token(self, counter: PromptTokenCounter, prompt: str) -> None:
        assert counter.count(prompt, MODEL).tokens >= 1

    def test_more_text_has_no_fewer_tokens(self, counter: PromptTokenCounter) -> None:
        assert counter.count(PROMPT * 9, MODEL).tokens > counter.count(PROMPT, MODEL).tokens

    def test_an_excerpt_stands_for_the_whole(self, counter: PromptTokenCounter) -> None:
        whole = counter.count(PROMPT * 200, MODEL)
        part = counter.count(PROMPT * 20, MODEL, share=0.1)
        assert part.tokens == pytest.approx(whole.tokens, rel=0.05)
        assert not part.exact

    def test_reports_are_learned_without_the_text(self, counter: PromptTokenCounter) -> None:
        for _ in range(200):
            counted = counter.count(PROMPT, MODEL)
            assert counter.learn_from(counted, 60) is None
        assert counter.count(PROMPT, MODEL).tokens == pytest.approx(60, abs=1)

    def test_what_is_kept_of_a_prompt_holds_none_of_it(self, counter: PromptTokenCounter) -> None:
        assert "fox" not in repr(counter.count(PROMPT, MODEL))

    @pytest.mark.parametrize("reported", [0, -1, math.nan, math.inf, 10**9])
    def test_lies_change_nothing(self, counter: PromptTokenCounter, reported: float) -> None:
        before = counter.count(PROMPT, MODEL)
        assert counter.learn_from(before, reported) is not None
        assert counter.count(PROMPT, MODEL).tokens == before.tokens

    def test_models_are_told_apart(self, counter: PromptTokenCounter) -> None:
        before = counter.count(PROMPT, "another").tokens
        for _ in range(50):
            counter.learn_from(counter.count(PROMPT, MODEL), 90)
        assert counter.count(PROMPT, "another").tokens == before

    def test_many_models_are_counted_for(self, counter: PromptTokenCounter) -> None:
        for place in range(300):
            counter.learn_from(counter.count(PROMPT, f"model {place}"), 20)
        assert counter.count(PROMPT, MODEL).tokens >= 1


class TestTokenizedPrompts:
    @pytest.mark.parametrize("prompt", ["", PROMPT, "Привет, мир! 東京都 🙂", "\n\n\t  x", "<s> in the text"])
    def test_counts_as_the_tokenizer_does(self, file: Path, reference: Tokenizer, prompt: str) -> None:
        counted = exact(file).count(prompt, MODEL)
        assert counted.exact
        assert counted.text_tokens == len(reference.encode(prompt, add_special_tokens=False))
        assert counted.tokens == len(reference.encode(prompt))

    def test_truncation_and_padding_of_the_file_are_not_those_of_prompts(self, tmp_path: Path, file: Path) -> None:
        truncating = write_tokenizer(tmp_path / "t.json", truncates=True)
        assert exact(truncating).count(PROMPT, MODEL).tokens == exact(file).count(PROMPT, MODEL).tokens

    def test_says_where_it_estimated(self, file: Path) -> None:
        counter = exact(file)
        assert not counter.count(PROMPT, "another").exact
        assert counter.count("a" * MAX_TEXT_BYTES, MODEL).exact
        assert not counter.count("a" * (MAX_TEXT_BYTES + 1), MODEL).exact
        assert not counter.count("é" * (MAX_TEXT_BYTES - 1), MODEL).exact

    def test_the_chat_template_is_what_engines_report_beyond_the_text(self, file: Path) -> None:
        counter = exact(file)
        for extra in (17, 17, 3, 17, 400):  # one client cut its prompt, one sent an image
            counted = counter.count(PROMPT, MODEL)
            assert counted.text_tokens is not None
            counter.learn_from(counted, counted.text_tokens + extra)
        counted = counter.count("Another dog.", MODEL)
        assert counted.text_tokens is not None
        assert counted.tokens == counted.text_tokens + 17

    def test_a_new_chat_template_is_learned_within_the_window(self, file: Path) -> None:
        counter = exact(file)
        for extra in [5] * 1_000 + [50] * (tokenizers.OVERHEAD_WINDOW // 2 + 1):
            counted = counter.count(PROMPT, MODEL)
            assert counted.text_tokens is not None
            counter.learn_from(counted, counted.text_tokens + extra)
        counted = counter.count(PROMPT, MODEL)
        assert counted.text_tokens is not None
        assert counted.tokens == counted.text_tokens + 50

    def test_the_estimator_learns_from_what_was_counted(self, file: Path) -> None:
        counter = exact(file)
        long = PROMPT * (MAX_TEXT_BYTES // len(PROMPT) + 1)
        before = counter.count(long, MODEL).tokens
        for words in range(1, 60):
            counter.learn_from(counter.count(PROMPT * words, MODEL), 30 * words)
        assert not counter.count(long, MODEL).exact
        assert counter.count(long, MODEL).tokens > 1.5 * before

    def test_other_tokenizers_come_into_force_at_once(self, file: Path) -> None:
        counter = exact(file)
        counter.use({})
        assert not counter.count(PROMPT, MODEL).exact
        counter.use(load_tokenizers(file.parent, {MODEL: file.name})[0])
        assert counter.count(PROMPT, MODEL).exact

    def test_a_tokenizer_that_fails_is_counted_and_estimated_for(self, file: Path) -> None:
        class Failing(TokenCounter):
            def count(self, text: str) -> int | None:
                raise RuntimeError(text)

        counter = TokenizedPrompts(PromptTokens(), {MODEL: Failing(Tokenizer.from_file(str(file)))})
        assert not counter.count(PROMPT, MODEL).exact
        assert counter.failures == 1

    def test_refusals_are_those_of_the_estimator(self, file: Path) -> None:
        counter = exact(file)
        assert counter.learn_from(counter.count(PROMPT, MODEL), 0) is TokenReportRefusal.NOT_POSITIVE


class TestLoading:
    def test_nothing_to_load(self) -> None:
        assert load_tokenizers(None, {}) == ({}, ())

    def test_one_file_serves_two_models(self, file: Path) -> None:
        counters, problems = load_tokenizers(file.parent, {"a": file.name, "b": file.name})
        assert problems == ()
        assert counters["a"] is counters["b"]

    def test_no_folder(self) -> None:
        _, (problem,) = load_tokenizers(None, {MODEL: "llama.json"})
        assert problem == "tokenizer llama.json of llama: no folder of tokenizers was given"

    def test_a_missing_file_leaves_the_others(self, file: Path) -> None:
        counters, (problem,) = load_tokenizers(file.parent, {MODEL: file.name, "b": "b/tokenizer.json"})
        assert list(counters) == [MODEL]
        assert problem == "tokenizer b/tokenizer.json of b: No such file or directory"

    @pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b"[1, 2", b'{"model": {"type": "BPE"}}', b"null"])
    def test_what_is_no_tokenizer(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "t.json").write_bytes(content)
        counters, (problem,) = load_tokenizers(tmp_path, {MODEL: "t.json"})
        assert counters == {}
        assert problem.startswith("tokenizer t.json of llama: is no tokenizer: ")
        assert len(problem) < 300

    def test_a_tokenizer_that_cannot_count_everything(self, tmp_path: Path, file: Path) -> None:
        words = {"type": "WordLevel", "vocab": {"Hello": 0}, "unk_token": "[UNK]"}
        (tmp_path / "t.json").write_text(json.dumps(json.loads(file.read_text()) | {"model": words}))
        counters, (problem,) = load_tokenizers(tmp_path, {MODEL: "t.json"})
        assert counters == {}
        assert "UNK" in problem

    def test_half_a_file(self, tmp_path: Path, file: Path) -> None:
        content = file.read_bytes()
        (tmp_path / "t.json").write_bytes(content[: len(content) // 2])
        assert load_tokenizers(tmp_path, {MODEL: "t.json"})[0] == {}

    def test_a_file_that_is_too_large(self, tmp_path: Path) -> None:
        with (tmp_path / "t.json").open("wb") as stream:
            stream.truncate(tokenizers.MAX_FILE_BYTES + 1)
        _, (problem,) = load_tokenizers(tmp_path, {MODEL: "t.json"})
        assert problem.endswith(f"more than {tokenizers.MAX_FILE_BYTES} bytes")

    def test_links_stay_within_the_folder(self, tmp_path: Path, file: Path) -> None:
        folder = tmp_path / "mounted"
        write_tokenizer(folder / "..data" / "llama.json")  # as a mounted ConfigMap has it
        (folder / "llama.json").symlink_to("..data/llama.json")
        (folder / "out.json").symlink_to(file)
        (folder / "round.json").symlink_to("round.json")
        (folder / "folder.json").mkdir()
        paths = {name: f"{name}.json" for name in ("llama", "out", "round", "folder")}
        counters, problems = load_tokenizers(folder, paths)
        assert list(counters) == ["llama"]
        assert problems[0] == "tokenizer out.json of out: is a link that leads out of the folder"
        assert len(problems) == 3
