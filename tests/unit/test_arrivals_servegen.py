from __future__ import annotations

import gzip
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest

from llmrouter.arrivals.readers import Format, Window, format_of, read
from llmrouter.arrivals.readers.servegen_draw import MAX_REQUESTS, Gaps
from llmrouter.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

RATES = "client,window_start_s,rate_rps,iat_cv,iat_dist,dist_p1,dist_p2\n"
LENGTHS = "client,window_start_s,field,mean,q0,q50,q100\n"
TWO_CLIENTS = (
    RATES
    + "7,0,10.0,1,Gamma,1.0,0.1\n7,600,40.0,2,Gamma,0.25,0.1\n9,600,20.0,1,Weibull,1.0,0.05\n5,600,1.0,1,Gamma,1.0,1\n",
    LENGTHS
    + "7,0,input_tokens,0,100,200,300\n7,0,output_tokens,0,10,10,10\n7,0,reason_ratio,0,0.1,0.2,0.3\n"
    + "9,0,input_tokens,0,1000,1000,1000\n9,0,output_tokens,0,1,2,3\n"
    + "9,21600,input_tokens,0,5000,5000,5000\n9,21600,output_tokens,0,1,2,3\n",
)


def write(folder: Path, rates: str, lengths: str) -> Path:
    (folder / "m.rates.csv").write_text(rates)
    (folder / "m.lengths.csv.gz").write_bytes(gzip.compress(lengths.encode()))
    (folder / "m.lengths.csv").write_text(lengths)
    return folder / "m.rates.csv"


@pytest.mark.parametrize("family", ["Gamma", "Weibull"])
@pytest.mark.parametrize("shape", [0.3, 1.0, 3.0])
def test_gaps_are_stationary_from_the_start(family: str, shape: float) -> None:
    """Every tenth of a window has a tenth of the requests, however bursty: the process has no beginning."""
    rng = np.random.default_rng(1)
    gaps = Gaps(0.0, 2.0, family, shape)
    runs = [gaps.arrivals(100.0, 110.0, rng) for _ in range(4_000)]
    all_s = np.concatenate(runs)
    assert all_s.min() >= 100.0
    assert all_s.max() < 110.0
    assert all((np.diff(one) >= 0).all() for one in runs)
    per_second, _ = np.histogram(all_s, bins=10, range=(100.0, 110.0))
    assert per_second / 4_000 == pytest.approx([2.0] * 10, rel=0.12)


@pytest.mark.parametrize(
    ("family", "shape", "cv"), [("Gamma", 0.25, 2.0), ("Gamma", 4.0, 0.5), ("Weibull", 0.5, 5**0.5)]
)
def test_gaps_have_the_cv_of_their_family(family: str, shape: float, cv: float) -> None:
    made = Gaps(0.0, 50.0, family, shape).arrivals(0.0, 4_000.0, np.random.default_rng(1))
    gaps = np.diff(made)
    assert len(made) == pytest.approx(200_000, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.04)


def test_a_window_draws_each_client_at_its_rate_with_its_lengths(tmp_path: Path) -> None:
    path = write(tmp_path, *TWO_CLIENTS)
    assert format_of(path) is Format.SERVEGEN
    assert format_of(tmp_path / "m.lengths.csv") is Format.SERVEGEN
    workload, skipped = read(path, window=Window(300.0, 900.0), rng=np.random.default_rng(1))
    assert skipped.by_reason == {"client without lengths": 1}
    assert workload.applications == ("client-7", "client-9")
    assert workload.name == "m"
    seven = workload.application == 0
    first = workload.arrived_at_s < 300.0
    assert (seven & first).sum() == pytest.approx(3_000, rel=0.1)
    assert (seven & ~first).sum() == pytest.approx(24_000, rel=0.1)
    assert not (~seven & first).any()
    assert (~seven).sum() == pytest.approx(12_000, rel=0.1)
    assert workload.prompt_tokens[seven].min() >= 100
    assert workload.prompt_tokens[seven].mean() == pytest.approx(200.0, rel=0.02)
    assert set(workload.output_tokens[seven].tolist()) == {10}
    assert set(workload.prompt_tokens[~seven].tolist()) == {1_000}


def test_the_quantiles_are_those_of_the_time(tmp_path: Path) -> None:
    rates, lengths = TWO_CLIENTS
    path = write(tmp_path, rates + "9,21600,5.0,1,Gamma,1.0,0.2\n", lengths)
    workload, _ = read(path, window=Window(21_600.0, 600.0), rng=np.random.default_rng(1))
    assert set(workload.prompt_tokens.tolist()) == {5_000}


def test_equal_seeds_draw_equal_requests_and_the_first_window_is_the_default(tmp_path: Path) -> None:
    path = write(tmp_path, *TWO_CLIENTS)
    first, again = (read(path, rng=np.random.default_rng(4))[0] for _ in range(2))
    assert (first.arrived_at_s == again.arrived_at_s).all()
    assert (first.prompt_tokens == again.prompt_tokens).all()
    assert len(first) == pytest.approx(6_000, rel=0.1)


def test_no_generator_no_requests(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="needs a seed"):
        read(write(tmp_path, *TWO_CLIENTS))


def test_a_window_without_requests_and_one_with_too_many_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    path = write(tmp_path, *TWO_CLIENTS)
    with pytest.raises(InvalidInputError, match=r"m\.rates\.csv: no client sends anything in the 600 s from 7200 s"):
        read(path, window=Window(7_200.0, 600.0), rng=rng)
    busy = write(tmp_path, RATES + f"7,0,{MAX_REQUESTS / 500},1,Gamma,1.0,1\n", TWO_CLIENTS[1])
    with pytest.raises(InvalidInputError, match="have about 24,000,000 requests, more than 20,000,000"):
        read(busy, rng=rng)


@pytest.mark.parametrize(
    ("rates", "lengths", "words"),
    [
        (RATES + "7,0,-1,1,Gamma,1,1\n", None, r"m\.rates\.csv, line 2: rate_rps must be 0 to"),
        (RATES + "7,0,fast,1,Gamma,1,1\n", None, "line 2: rate_rps must be a number, not 'fast'"),
        (RATES + "7,0,1,1,Pareto,1,1\n", None, "line 2: iat_dist must be Gamma or Weibull, not 'Pareto'"),
        (RATES + "7,0,1,1,Weibull,0.001,1\n", None, "line 2: dist_p1 must be 0.02 to 1000"),
        (RATES, None, "has no client with a rate"),
        ("client,rate_rps\n", None, "lacks the columns window_start_s, iat_dist, dist_p1"),
        (None, "client,window_start_s,field,q1,q50\n", "lacks quantiles from q0 to q100"),
        (
            None,
            LENGTHS + "7,0,input_tokens,0,3,2,4\n",
            r"m\.lengths\.csv, line 2: the quantiles of input_tokens decrease",
        ),
        (None, LENGTHS + "7,0,input_tokens,0,3,many,4\n", "line 2: input_tokens must be a number"),
        (None, LENGTHS, "no client sends anything"),
    ],
)
def test_a_bad_file_names_its_line(rates: str | None, lengths: str | None, words: str, tmp_path: Path) -> None:
    path = write(tmp_path, rates or TWO_CLIENTS[0], lengths or TWO_CLIENTS[1])
    with pytest.raises(InvalidInputError, match=words):
        read(path, format="servegen", rng=np.random.default_rng(1))


def test_both_files_are_needed_under_their_names(tmp_path: Path) -> None:
    path = write(tmp_path, *TWO_CLIENTS)
    (tmp_path / "m.lengths.csv").unlink()
    with pytest.raises(InvalidInputError, match=re.escape(f"{tmp_path / 'm.lengths.csv'}: no such file")):
        read(path, rng=np.random.default_rng(1))
    other = path.rename(tmp_path / "rates.csv")
    with pytest.raises(InvalidInputError, match=r"are named NAME\.rates\.csv"):
        read(other, rng=np.random.default_rng(1))


def test_bad_lines_can_be_skipped_and_are_counted(tmp_path: Path) -> None:
    rates, lengths = TWO_CLIENTS
    path = write(tmp_path, rates + "7,0,fast,1,Gamma,1,1\n", lengths)
    _, skipped = read(path, rng=np.random.default_rng(1), on_bad="skip")
    assert skipped.by_reason == {"not a number": 1, "client without lengths": 1}
