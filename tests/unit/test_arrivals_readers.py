from __future__ import annotations

import gzip
import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from llmrouter.arrivals.readers import Format, Window, format_of, read
from llmrouter.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

OWN = "arrival_s,prompt_tokens,output_tokens"
GOOD = {
    "azure": (
        "AzureLLMInferenceTrace_code.csv",
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n"
            "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
        ),
    ),
    "csv": ("mine.csv", f"{OWN}\n0.5,374,44\n4.814579,396,109\n"),
    "jsonl": (
        "mine.jsonl",
        (
            '{"arrival_s": 0.5, "prompt_tokens": 374, "output_tokens": 44}\n'
            '{"arrival_s": 4.814579, "prompt_tokens": 396, "output_tokens": 109}\n'
        ),
    ),
    "mooncake": (
        "conversation_trace.jsonl",
        (
            '{"timestamp": 500, "input_length": 374, "output_length": 44, "hash_ids": [3]}\n'
            '{"timestamp": 4814.579, "input_length": 396, "output_length": 109, "hash_ids": [3]}\n'
        ),
    ),
}


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


class TestFormats:
    @pytest.mark.parametrize("zipped", ["", ".gz"])
    @pytest.mark.parametrize("kind", GOOD)
    def test_each_is_told_from_its_first_line_and_read(self, kind: str, zipped: str, tmp_path: Path) -> None:
        name, text = GOOD[kind]
        path = write(tmp_path, name + zipped, text)
        assert format_of(path) == kind
        workload, skipped = read(path)
        assert skipped.total == 0
        assert workload.prompt_tokens.tolist() == [374, 396]
        assert workload.output_tokens.tolist() == [44, 109]
        assert np.diff(workload.arrived_at_s) == pytest.approx([4.314579], abs=1e-6)
        assert workload.name == name.split(".")[0]

    def test_a_format_may_be_said(self, tmp_path: Path) -> None:
        path = write(tmp_path, "x", GOOD["csv"][1])
        assert len(read(path, format="csv")[0]) == 2
        with pytest.raises(InvalidInputError, match="format must be one of azure, csv, jsonl"):
            read(path, format="parquet")

    def test_what_looks_like_none_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match="line 1: looks like none of azure, csv"):
            read(write(tmp_path, "x.csv", "a,b,c\n1,2,3\n"))

    def test_on_bad_is_one_of_two_words(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match="on_bad must be refuse or skip"):
            read(write(tmp_path, "x.csv", GOOD["csv"][1]), on_bad="ignore")  # type: ignore[arg-type]


class TestAzure:
    @pytest.mark.parametrize(
        ("name", "application"), [("code.csv", "code"), ("conv.csv", "conversation"), ("week.csv", "")]
    )
    def test_the_file_names_the_application(self, name: str, application: str, tmp_path: Path) -> None:
        text = "arrival_s,input_tokens,output_tokens\n0.0,10,5\n1.5,20,6\n"
        workload, _ = read(write(tmp_path, name, text))
        assert workload.applications == (application,)
        assert workload.arrived_at_s.tolist() == [0.0, 1.5]

    def test_the_later_release_s_times_with_a_zone_are_read(self, tmp_path: Path) -> None:
        text = (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n"
            "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:00.017335+00:00,2399,6\n"
        )
        workload, _ = read(write(tmp_path, "a.csv", text))
        assert workload.arrived_at_s == pytest.approx([0.0, 0.007405], abs=1e-9)

    @pytest.mark.parametrize(
        ("second", "words"),
        [
            ("yesterday,10,5", "line 3: TIMESTAMP must be a date and time, not 'yesterday'"),
            ("2023-11-16 18:15:45,10,5", "line 3: TIMESTAMP .* before the first request"),
            ("2023-11-16T18:15:46+00:00,10,5", "line 3: TIMESTAMP must be a date and time"),
        ],
    )
    def test_a_bad_time_names_its_line(self, second: str, words: str, tmp_path: Path) -> None:
        text = f"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,10,5\n{second}\n"
        with pytest.raises(InvalidInputError, match=words):
            read(write(tmp_path, "a.csv", text))


class TestMooncake:
    def lines(self, *rows: dict[str, Any]) -> str:
        return "".join(json.dumps({"timestamp": 0, "output_length": 1, **row}) + "\n" for row in rows)

    def test_blocks_are_dense_and_only_whole_ones(self, tmp_path: Path) -> None:
        text = self.lines(
            {"input_length": 1_030, "hash_ids": [70, 9, 4]},
            {"input_length": 1_536, "hash_ids": [70, 9, 5]},
            {"input_length": 300, "hash_ids": [8]},
        )
        workload, _ = read(write(tmp_path, "toolagent_trace.jsonl", text))
        assert workload.prefix_block_tokens == 512
        assert workload.prefix_start.tolist() == [0, 2, 5, 5]
        assert workload.prefix_blocks.tolist() == [0, 1, 0, 1, 2]
        assert workload.applications == ("toolagent",)

    def test_more_blocks_than_the_prompt_fills_are_refused(self, tmp_path: Path) -> None:
        path = write(tmp_path, "x.jsonl", self.lines({"input_length": 512, "hash_ids": [1, 2]}))
        with pytest.raises(InvalidInputError, match="line 1: 2 prefix blocks of 512 tokens are more than"):
            read(path)

    @pytest.mark.parametrize("hashes", ["abc", [1.5], [True], {"a": 1}])
    def test_blocks_that_are_no_list_of_numbers_are_refused(self, hashes: object, tmp_path: Path) -> None:
        path = write(tmp_path, "x.jsonl", self.lines({"input_length": 512, "hash_ids": hashes}))
        with pytest.raises(InvalidInputError, match="line 1: hash_ids must be a list of whole numbers"):
            read(path)

    def test_ticks_are_kept_unless_asked_and_then_spread_in_order(self, tmp_path: Path) -> None:
        ticks = np.repeat(np.arange(40) * 3_000, 25)
        ticks[500:525] -= 1
        path = write(
            tmp_path,
            "x.jsonl",
            self.lines(*({"timestamp": int(t), "input_length": n + 1} for n, t in enumerate(ticks))),
        )
        kept, _ = read(path)
        assert kept.arrived_at_s == pytest.approx(ticks / 1_000)
        spread, _ = read(path, rng=np.random.default_rng(1))
        assert spread.prompt_tokens.tolist() == kept.prompt_tokens.tolist()
        moved_s = spread.arrived_at_s - kept.arrived_at_s
        assert (moved_s >= 0).all()
        assert (moved_s <= 3.0).all()
        assert moved_s.mean() == pytest.approx(1.5, abs=0.1)

    def test_times_that_are_no_ticks_are_never_moved(self, tmp_path: Path) -> None:
        path = write(
            tmp_path, "x.jsonl", self.lines(*({"timestamp": t, "input_length": 9} for t in (1, 40, 277, 8_000)))
        )
        assert read(path, rng=np.random.default_rng(1))[0].arrived_at_s.tolist() == [0.001, 0.04, 0.277, 8.0]


class TestOwn:
    def test_every_column_of_a_csv_is_read(self, tmp_path: Path) -> None:
        header = (
            f"{OWN},application,model,tenant,session,think_s,cancelled_after_s,predicted_output_tokens,"
            "prefix_blocks,prefix_block_tokens,unheard_of"
        )
        text = (
            f"{header}\n"
            "0,40,5,chat,big,alice,s1,,,7.5,a b,16,x\n"
            "1,50,6,code,small,bob,,,2.5,,,,x\n"
            ",80,7,chat,big,alice,s1,12.5,,,a b c,16,x\n"
        )
        workload, _ = read(write(tmp_path, "x.csv", text))
        assert workload.arrived_at_s.tolist() == [0.0, 1.0, 0.0]
        assert [workload.applications[one] for one in workload.application] == ["chat", "code", "chat"]
        assert [workload.models[one] for one in workload.model] == ["big", "small", "big"]
        assert [workload.tenants[one] for one in workload.tenant] == ["alice", "bob", "alice"]
        assert workload.after.tolist() == [-1, -1, 0]
        assert workload.think_s.tolist() == [0.0, 0.0, 12.5]
        assert workload.cancelled_after_s.tolist() == [float("inf"), 2.5, float("inf")]
        assert workload.predicted_output_tokens.tolist() == [7.5, 0.0, 0.0]
        assert workload.prefix_start.tolist() == [0, 2, 2, 5]
        assert workload.prefix_blocks.tolist() == [0, 1, 0, 1, 2]
        assert workload.prefix_block_tokens == 16
        assert workload.duration_s == 1.0

    def test_json_lines_say_the_same(self, tmp_path: Path) -> None:
        rows = [
            {"arrival_s": 0, "prompt_tokens": 40, "output_tokens": 5, "session": "s", "application": None},
            {"prompt_tokens": 80, "output_tokens": 7, "session": "s", "think_s": 3, "tenant": 12},
            {
                "arrival_s": 9,
                "prompt_tokens": 32,
                "output_tokens": 5,
                "prefix_blocks": ["x", 7],
                "prefix_block_tokens": 16,
            },
        ]
        workload, _ = read(write(tmp_path, "x.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
        assert workload.after.tolist() == [-1, 0, -1]
        assert workload.think_s.tolist() == [0.0, 3.0, 0.0]
        assert workload.tenants == ("", "12")
        assert workload.prefix_blocks.tolist() == [0, 1]

    def test_a_session_without_think_times_arrives_as_recorded(self, tmp_path: Path) -> None:
        workload, _ = read(write(tmp_path, "x.csv", f"{OWN},session\n0,1,1,s\n5,1,1,s\n"))
        assert workload.after.tolist() == [-1, -1]
        assert workload.arrived_at_s.tolist() == [0.0, 5.0]

    @pytest.mark.parametrize(
        ("header", "row", "words"),
        [
            (",session,think_s", ",5,1,s,3", "lacks arrival_s"),
            (",session,think_s", "0,5,1,,3", "think_s needs a session"),
            (",prefix_blocks", "0,50,1,a b", "prefix_blocks needs prefix_block_tokens"),
            (",prefix_blocks,prefix_block_tokens", "0,50,1,a b,0", "prefix_block_tokens must be 1 to 65,536"),
            (",cancelled_after_s", "0,50,1,-1", "cancelled_after_s must be 0 to inf"),
            (",predicted_output_tokens", "0,50,1,many", "predicted_output_tokens must be a number, not 'many'"),
        ],
    )
    def test_an_optional_column_is_checked_too(self, header: str, row: str, words: str, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match=f"line 2: {words}"):
            read(write(tmp_path, "x.csv", f"{OWN}{header}\n{row}\n"))

    def test_blocks_of_two_sizes_are_refused(self, tmp_path: Path) -> None:
        text = f"{OWN},prefix_blocks,prefix_block_tokens\n0,64,1,a,16\n1,64,1,a,32\n"
        with pytest.raises(InvalidInputError, match="line 3: prefix_block_tokens must be 16 as in earlier lines"):
            read(write(tmp_path, "x.csv", text))

    @pytest.mark.parametrize(
        ("row", "words"),
        [
            ('{"arrival_s": 1, "prompt_tokens": 5}', "lacks output_tokens"),
            ('{"arrival_s": 1, "prompt_tokens": 5.5, "output_tokens": 1}', "prompt_tokens must be a whole number"),
            ('{"arrival_s": 1, "prompt_tokens": true, "output_tokens": 1}', "prompt_tokens must be a whole number"),
            ('{"arrival_s": "soon", "prompt_tokens": 5, "output_tokens": 1}', "arrival_s must be a number of seconds"),
            ('{"arrival_s": NaN, "prompt_tokens": 5, "output_tokens": 1}', "NaN is no JSON number"),
            ('{"arrival_s": 1e999, "prompt_tokens": 5, "output_tokens": 1}', "arrival_s must be 0 to"),
            ('{"arrival_s": 1, "prompt_tokens": 5, "output_tokens": 1, "tenant": [1]}', "tenant must be a word"),
            ("[1, 2]", "not a JSON object but a list"),
            ('{"arrival_s": 1, "prompt', "not a JSON object"),
            ("[" * 100_000, "not a JSON object"),
        ],
    )
    def test_a_bad_json_line_is_named(self, row: str, words: str, tmp_path: Path) -> None:
        good = '{"arrival_s": 0, "prompt_tokens": 5, "output_tokens": 1}\n'
        with pytest.raises(InvalidInputError, match=re.escape("x.jsonl, line 2: ") + f".*{words}"):
            read(write(tmp_path, "x.jsonl", good + row + "\n"))


class TestSessions:
    HEADER = "session_id,turn_index,arrival_delta_s,think_time_s,input_tokens,output_tokens,model_id\n"

    def test_turns_follow_turns_and_share_what_grew(self, tmp_path: Path) -> None:
        text = (
            self.HEADER
            + "0,0,5.0,,1100,10,opus\n0,1,9.0,2.5,1700,20,opus\n0,2,30.0,8.0,900,30,haiku\n"
            + "1,0,1.0,,600,40,opus\n1,1,4.0,0.5,600,50,opus\n"
        )
        path = write(tmp_path, "sessions.csv", text)
        assert format_of(path) is Format.SESSIONS
        workload, _ = read(path)
        assert workload.output_tokens.tolist() == [40, 50, 10, 20, 30]
        assert workload.arrived_at_s.tolist() == [1.0, 1.0, 5.0, 5.0, 5.0]
        assert workload.after.tolist() == [-1, 0, -1, 2, 3]
        assert workload.think_s.tolist() == [0.0, 0.5, 0.0, 2.5, 8.0]
        assert {workload.models[one] for one in workload.model} == {"opus", "haiku"}
        blocks = [
            workload.prefix_blocks[begin:end].tolist()
            for begin, end in zip(workload.prefix_start, workload.prefix_start[1:], strict=False)
        ]
        assert [len(one) for one in blocks] == [1, 1, 2, 3, 1]
        assert blocks[0] == blocks[1]
        assert blocks[3][:2] == blocks[2]
        assert not set(blocks[4]) & {*blocks[0], *blocks[2], *blocks[3]}

    def test_a_later_turn_without_a_think_time_is_refused(self, tmp_path: Path) -> None:
        text = f"{self.HEADER}0,0,5.0,,1100,10,opus\n0,1,9.0,,1700,20,opus\n"
        with pytest.raises(InvalidInputError, match="line 3: think_time_s must be a number of seconds"):
            read(write(tmp_path, "sessions.csv", text))


class TestBadInput:
    @pytest.mark.parametrize(
        ("lines", "words"),
        [
            (["arrival_s,prompt_tokens,output_token"], "line 1: looks like none of"),
            ([f"{OWN},arrival_s"], "line 1: has the column arrival_s twice"),
            ([OWN], "has no requests"),
            ([OWN, "0,-5,1"], r"line 2: prompt_tokens must be 1 to 10,000,000, not '-5'"),
            ([OWN, "0,5,0"], r"line 2: output_tokens must be 1 to"),
            ([OWN, "0,5,1", "1,10000001,1"], r"line 3: prompt_tokens must be 1 to"),
            ([OWN, "0,5.0,1"], r"line 2: prompt_tokens must be a whole number, not '5.0'"),
            ([OWN, "0," + "9" * 5_000 + ",1"], r"line 2: prompt_tokens must be a whole number, not '9+\.\.\.'"),
            ([OWN, "nan,5,1"], r"line 2: arrival_s must be 0 to"),
            ([OWN, "-1,5,1"], r"line 2: arrival_s must be 0 to"),
            ([OWN, "1e11,5,1"], r"line 2: arrival_s must be 0 to"),
            ([OWN, "3,5,1", "2,5,1"], r"line 3: arrives at 2 s, before the 3 s of an earlier line"),
            ([OWN, "0,5"], "line 2: has 2 columns, not 3"),
            ([OWN, "0,5,1,7"], "line 2: has 4 columns, not 3"),
            ([OWN, "0,5,1", "", '1,"' + "x" * 200_000 + '",3'], "line 4: not CSV"),
        ],
    )
    def test_one_line_names_file_line_and_bound(self, lines: list[str], words: str, tmp_path: Path) -> None:
        path = write(tmp_path, "trace.csv", "\n".join(lines) + "\n")
        with pytest.raises(InvalidInputError, match=words) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_missing_file_a_folder_and_an_empty_file(self, tmp_path: Path) -> None:
        for path in (tmp_path / "none.csv", tmp_path):
            with pytest.raises(InvalidInputError, match=re.escape(str(path))):
                read(path)
        with pytest.raises(InvalidInputError, match="is empty"):
            read(write(tmp_path, "empty.csv", ""))
        with pytest.raises(InvalidInputError, match="is empty"):
            read(write(tmp_path, "empty.csv", ""), format="csv")

    def test_a_cut_gzip_file(self, tmp_path: Path) -> None:
        rows = "".join(f"{n},{n % 977 + 1},{n % 89 + 1}\n" for n in range(50_000))
        whole = gzip.compress(f"{OWN}\n{rows}".encode())
        path = tmp_path / "cut.csv.gz"
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InvalidInputError, match=r"cut\.csv\.gz, line \d+: the compressed data end early"):
            read(path)
        workload, skipped = read(path, on_bad="skip")
        assert 1_000 < len(workload) < 50_000
        assert skipped.by_reason["file ends early"] == 1

    def test_a_damaged_gzip_file(self, tmp_path: Path) -> None:
        whole = bytearray(gzip.compress(f"{OWN}\n0,5,1\n".encode() * 500))
        whole[len(whole) // 2] ^= 0xFF
        (tmp_path / "bad.csv.gz").write_bytes(whole)
        with pytest.raises(InvalidInputError, match=r"bad\.csv\.gz, line \d+: "):
            read(tmp_path / "bad.csv.gz", format="csv")

    def test_a_cut_last_line_says_so(self, tmp_path: Path) -> None:
        path = write(tmp_path, "trace.csv", f"{OWN}\n0,5,1\n1,5")
        with pytest.raises(InvalidInputError, match=r"line 3: has 2 columns, not 3 \(the file ends in this line"):
            read(path)
        assert read(path, on_bad="skip")[1].by_reason == {"wrong number of columns": 1}

    def test_a_whole_last_line_needs_no_end(self, tmp_path: Path) -> None:
        assert len(read(write(tmp_path, "trace.csv", f"{OWN}\n0,5,1\n1,5,17"))[0]) == 2

    def test_what_is_no_utf8_names_line_and_column(self, tmp_path: Path) -> None:
        path = write(tmp_path, "trace.csv", f"{OWN},application\n0,5,1,ok\n1,5,1,".encode() + b"caf\xe9\n")
        with pytest.raises(InvalidInputError, match="line 3: not UTF-8: byte 0xe9 at column 10"):
            read(path)
        assert read(path, on_bad="skip")[1].by_reason == {"not UTF-8": 1}

    def test_a_byte_order_mark_and_windows_line_ends_are_no_matter(self, tmp_path: Path) -> None:
        path = write(tmp_path, "trace.csv", b"\xef\xbb\xbf" + f"{OWN}\r\n0,5,1\r\n\r\n1,6,2\r\n".encode())
        assert read(path)[0].prompt_tokens.tolist() == [5, 6]

    def test_a_line_without_end_is_not_swallowed_whole(self, tmp_path: Path) -> None:
        path = write(tmp_path, "trace.csv", f"{OWN}\n0,5,1\n".encode() + b"9" * 9_000_000 + b"\n2,5,1\n")
        with pytest.raises(InvalidInputError, match="line 3: longer than 4,194,304 bytes"):
            read(path)
        workload, skipped = read(path, on_bad="skip")
        assert workload.arrived_at_s.tolist() == [0.0, 2.0]
        assert skipped.by_reason == {"line too long": 1}

    def test_skipped_lines_are_counted_by_reason(self, tmp_path: Path) -> None:
        rows = ["0,5,1", "x,5,1", "1,0,1", "2,5,1", "1,5,1", "3,5", "4,y,1", "5,5,1"]
        workload, skipped = read(write(tmp_path, "trace.csv", "\n".join([OWN, *rows]) + "\n"), on_bad="skip")
        assert workload.arrived_at_s.tolist() == [0.0, 2.0, 5.0]
        assert skipped.total == 5
        assert dict(skipped.by_reason) == {
            "not a number": 2,
            "out of bounds": 1,
            "earlier than the line before": 1,
            "wrong number of columns": 1,
        }
        assert str(skipped) == (
            "1 earlier than the line before, 2 not a number, 1 out of bounds, 1 wrong number of columns"
        )

    def test_nothing_left_says_what_was_left_out(self, tmp_path: Path) -> None:
        path = write(tmp_path, "trace.csv", f"{OWN}\n0,0,1\n")
        with pytest.raises(InvalidInputError, match=r"has no requests \(left out: 1 out of bounds\)"):
            read(path, on_bad="skip")


class TestWindow:
    def test_a_window_is_moved_to_start_at_0(self, tmp_path: Path) -> None:
        path = write(tmp_path, "x.csv", f"{OWN}\n" + "".join(f"{n},{n + 1},1\n" for n in range(10)))
        assert read(path, window=Window(3.0, 4.0))[0].arrived_at_s.tolist() == [0.0, 1.0, 2.0, 3.0]
        with pytest.raises(InvalidInputError, match="no request arrives in the 5 s from 20 s"):
            read(path, window=Window(20.0, 5.0))

    @pytest.mark.parametrize(("start_s", "duration_s"), [(-1.0, 5.0), (0.0, 0.0), (float("nan"), 1.0), (0.0, 1e12)])
    def test_an_impossible_window_is_refused(self, start_s: float, duration_s: float) -> None:
        with pytest.raises(InvalidInputError, match="a window starts at 0 s"):
            Window(start_s, duration_s)
