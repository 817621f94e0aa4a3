"""The benchmarks measure what they say. No test here asks how fast anything is."""

import json
import math
import os
import platform
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "ci"))

from benchmarks.captured import measure_captured  # noqa: E402
from benchmarks.contestants import BASES, CONTESTANTS  # noqa: E402
from benchmarks.eager import EagerSGDG  # noqa: E402
from benchmarks.interleave import contest  # noqa: E402
from benchmarks.intervals import Interval, median_interval, quartiles  # noqa: E402
from benchmarks.memory import peak_bytes, state_bytes  # noqa: E402
from benchmarks.parameters import ParameterSet, parameter_set  # noqa: E402
from benchmarks.step import measure_set  # noqa: E402
from benchmarks.sweep_speed import measure_sweep  # noqa: E402
from benchmarks.targets import split_targets, step_targets, train_targets, verdict  # noqa: E402
from benchmarks.throughput import _kernels, measure_throughput  # noqa: E402

import riembn  # noqa: E402

CPU = torch.device("cpu")


class Machine:
    """Contestants whose calls take as long as they are told to, on a clock of its own."""

    def __init__(self, **seconds):
        self.now, self.calls, self.chance = 0.0, [], random.Random(0)
        self.runners = {name: lambda name=name: self.run(name) for name in seconds}
        self.mean, self.slowdown, self.noise = seconds, lambda: 1.0, 0.0

    def run(self, name):
        self.calls.append(name)
        self.now += self.mean[name] * self.slowdown() * math.exp(self.chance.gauss(0, self.noise))

    def measure(self, run, calls):
        start = self.now
        for _ in range(calls):
            run()
        return (self.now - start) / calls

    def contest(self, *bases, **options):
        options = {"call_seconds": 0.0, **options}
        return contest(self.runners, bases, measure=self.measure, clock=lambda: self.now, **options)


def test_each_round_runs_every_contestant_once_in_changing_order():
    machine = Machine(a=1.0, b=2.0, c=3.0)
    machine.noise = 0.5
    found = machine.contest("a", min_rounds=12, limit=200.0)
    turns = machine.calls[6:]  # after two calls each to warm up
    rounds = [tuple(turns[i : i + 3]) for i in range(0, 36, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) >= 4
    assert {first for first, *_ in rounds} == {"a", "b", "c"}
    assert found.rounds >= 12


def test_ratio_is_that_within_a_round_however_the_machine_slows_down():
    machine = Machine(base=1.0, other=3.0)
    machine.slowdown = lambda: 2.0 ** (((len(machine.calls) - 1) // 2 * 7) % 5)  # another one each round
    found = machine.contest("base", min_rounds=20, limit=1e9)
    assert len({found.seconds["other"][i] for i in range(20)}) == 5
    assert found.ratio("other", "base") == Interval(3.0, 3.0, 3.0)


def test_contest_ends_when_the_ratios_are_narrow_and_not_before():
    machine = Machine(base=1.0, other=2.0)
    machine.noise = 0.1
    found = machine.contest("base", width=0.05, limit=1e9)
    assert found.narrow == {"base", "other"} and found.ratio("other", "base").width <= 0.05
    assert found.rounds > 7
    before = [found.seconds["other"][i] / found.seconds["base"][i] for i in range(found.rounds - 1)]
    assert median_interval(before).width > 0.05
    assert found.ratio("other", "base").low < 2.0 < found.ratio("other", "base").high


def test_contestant_whose_ratio_is_known_leaves_and_the_bases_stay():
    machine = Machine(base=1.0, steady=5.0, stray=1.0, company=1.0)
    quiet, machine.noise = machine.run, 0.0

    def run(name):
        machine.noise = 0.3 if name == "stray" else 0.0
        quiet(name)

    machine.runners = {name: lambda name=name: run(name) for name in machine.mean}
    found = machine.contest("base", company=["company"], width=0.2, limit=1e9)
    assert len(found.seconds["steady"]) == 7
    assert len(found.seconds["base"]) == len(found.seconds["company"]) == found.rounds > 7
    assert len(found.seconds["stray"]) == found.rounds


def test_contest_stops_at_the_limit_and_says_who_was_not_done():
    machine = Machine(base=1.0, wild=1.0)
    machine.noise = 2.0
    found = machine.contest("base", limit=100.0, width=0.001)
    assert "wild" not in found.narrow
    assert found.spent >= 100.0
    assert found.spent - sum(times[found.rounds - 1] for times in found.seconds.values()) < 100.0


def test_fast_contestants_are_called_several_times_a_round():
    machine = Machine(base=1.0, quick=0.01)
    found = machine.contest("base", call_seconds=0.045)
    assert found.calls == {"base": 1, "quick": 5}
    assert found.ratio("quick", "base").median == pytest.approx(0.01)


def test_unknown_base_is_refused():
    with pytest.raises(ValueError, match="contest: 'b' is not among the runners a."):
        Machine(a=1.0).contest("b")


@given(st.lists(st.floats(0.1, 10.0), min_size=6, max_size=200))
def test_interval_holds_the_median_and_shrinks_to_inner_values(values):
    found = median_interval(values)
    assert found.low is not None and min(values) <= found.low <= found.median <= found.high <= max(values)
    inverse = found.into(2.0)
    assert inverse.low * found.high == pytest.approx(2.0) and inverse.low <= inverse.median <= inverse.high


def test_interval_needs_six_values():
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) == Interval(3.0, None, None)
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == Interval(3.5, 1.0, 6.0)
    assert median_interval([1.0]).width == math.inf


@pytest.mark.parametrize("count", [6, 9, 15, 40])
def test_interval_covers_the_true_median_as_often_as_it_says(count):
    chance, covered, trials = random.Random(count), 0, 2000
    for _ in range(trials):
        found = median_interval([chance.expovariate(1.0) for _ in range(count)])
        covered += found.low <= math.log(2) <= found.high
    assert 0.94 <= covered / trials <= 0.99


def test_interval_of_many_values_is_that_of_the_normal_approximation():
    n = 3001
    found = median_interval([float(i) for i in range(n)])
    assert found.median == 1500.0
    assert found.high - 1500.0 == 1500.0 - found.low == pytest.approx(1.96 * n**0.5 / 2, abs=1.0)


def test_quartiles_of_one_value_are_that_value():
    assert quartiles([2.0]) == {"low": 2.0, "median": 2.0, "high": 2.0}
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == {"low": 2.0, "median": 3.0, "high": 4.0}


SIZES = {
    "vgg-13": (9_402_048, 10),
    "wrn-28-10": (36_454_832, 28),
    "resnet-18": (11_166_912, 20),
    "stack-1e8": (10**8, 100),
}


@pytest.mark.parametrize("name", SIZES)
def test_parameter_sets_have_the_sizes_of_their_networks(name):
    found = parameter_set(name)
    assert (found.parameters, len(found.shapes)) == SIZES[name]


def test_gradients_are_tangent_to_unit_rows():
    small = ParameterSet("small", ((5, 3, 3, 3), (4, 7)))
    weights = small.weights(CPU)
    for w, g in zip(weights, small.gradients(weights), strict=True):
        assert (w.flatten(1).norm(dim=1) - 1).abs().max() < 1e-6
        assert (w * g).flatten(1).sum(1).abs().max() < 1e-7
        assert (g.flatten(1).norm(dim=1) - 0.05).abs().max() < 1e-6


def test_plain_eager_version_computes_sgd_g():
    start = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))
    ours, plain = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimizer, eager = riembn.SGDG([ours], lr=0.2), EagerSGDG([plain], lr=0.2)
    for seed in range(5):
        ours.grad = plain.grad = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(seed))
        optimizer.step()
        eager.step()
    assert torch.allclose(ours, plain, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # geoopt, when it is imported
@pytest.mark.parametrize("name", CONTESTANTS)
def test_contestants_step_and_write_to_no_gradient(name):
    small = ParameterSet("small", ((8, 3, 3, 3), (4, 16)))
    weights = small.weights(CPU)
    grads = small.gradients(weights)
    kept = [g.clone() for g in grads]
    try:
        optimizer = CONTESTANTS[name].build(weights, grads)
    except ImportError as missing:
        pytest.skip(str(missing))
    for _ in range(3):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(grads, kept, strict=True))
    buffers = (CONTESTANTS[name].bytes_per_parameter - 12) // 8
    assert 4 * small.parameters * buffers <= state_bytes(optimizer) <= 4 * small.parameters * buffers + 200


def test_peak_memory_is_what_is_held_at_once():
    x = torch.ones(1000)

    def run():
        y = x * 2
        z = y + 1
        del y
        return z * 3

    assert 8000 <= peak_bytes(run, CPU) <= 8100


def test_fused_step_allocates_nothing_that_grows():
    small = ParameterSet("small", ((64, 500),))
    weights = small.weights(CPU)
    optimizer = CONTESTANTS["SGD-G fused"].build(weights, small.gradients(weights))
    optimizer.step()
    assert peak_bytes(optimizer.step, CPU) < 1000


def test_set_that_does_not_fit_is_left_out_with_the_reason(monkeypatch):
    monkeypatch.setattr("benchmarks.step.free_bytes", lambda device: 10**6)
    told = measure_set("stack-1e6", CPU)
    (skipped,) = told["skipped"]
    assert told["results"] == [] and "GB of memory" in skipped["why"]


def test_contestant_that_is_not_installed_is_left_out_with_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "adamp", None)
    told = measure_set("stack-1e6", CPU, only=[*BASES, "adamp SGDP"], quick=True, limit=0.01, min_rounds=1)
    (skipped,) = told["skipped"]
    assert skipped["name"] == "adamp SGDP" and "adamp" in skipped["why"]
    assert [one["name"] for one in told["results"]] == list(BASES)


@pytest.mark.parametrize("value, at_most, word", [((1.0, 1.1), True, "reached"), ((1.1, 1.3), True, "undecided"),
                                                  ((1.3, 1.4), True, "not reached"), ((1.3, 1.4), False, "reached"),
                                                  ((1.0, 1.1), False, "not reached")])  # fmt: skip
def test_verdict_looks_at_the_whole_interval(value, at_most, word):
    low, high = value
    assert verdict(1.2, at_most, {"median": (low + high) / 2, "low": low, "high": high}) == word
    assert verdict(1.2, at_most, {"median": 1.0, "low": None, "high": None}) == "undecided"


def numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for entry in value for number in numbers(entry)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def bench(*words, out):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "ci"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks", *words, "--out", str(out), "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(out.read_text())


def test_quick_step_writes_a_record_of_finite_numbers(tmp_path):
    said, record = bench("--quick", "--parts", "sets", "training", out=tmp_path / "step.json")
    (told,) = record["sets"]
    assert {one["name"] for one in told["results"]} | {one["name"] for one in told["skipped"]} == set(
        CONTESTANTS
    )
    assert all(math.isfinite(number) for number in numbers(record))
    for one in told["results"]:
        assert one["ratios"]["SGD fused"]["median"] > 0 and one["seconds"]["median"] > 0
    assert record["training_step"]["ratio"]["median"] > 0
    assert record["environment"]["threads"] == 1 and "allocator" in record["environment"]
    assert record["targets"] == step_targets(record)
    assert "SGD-G fused" in said and str(tmp_path) in said


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_captured_steps_are_timed_beside_a_copy():
    told = measure_captured("vgg-13", torch.device("cuda"), quick=True, limit=0.5, min_rounds=2)
    assert [one["name"] for one in told["results"]] == ["SGD", "Adam", "SGD-G", "Adam-G", "PSI-SGD"]
    assert all(number > 0 and math.isfinite(number) for number in numbers(told["results"]))


def test_targets_ask_the_same_of_a_captured_step():
    result = {"ratios": dict.fromkeys(("SGD", "Adam"), {"median": 0.9, "low": 0.85, "high": 1.0})}
    result["share_of_copy"] = {"median": 0.9, "low": 0.86, "high": 0.95}
    captured = {"name": "wrn-28-10", "results": [{"name": name, **result} for name in ("SGD-G", "Adam-G")]}
    found = step_targets({"kind": "cuda", "sets": [], "captured": [captured]})
    assert [(one["bound"], one["verdict"]) for one in found] == [
        (1.05, "reached"), (0.8, "not reached"), (0.85, "reached"),
    ]  # fmt: skip


def test_quick_train_writes_a_record_of_finite_numbers(tmp_path):
    parts, out = ("parts", "augmentation", "loop", "memory"), tmp_path / "train.json"
    _, first = bench("train", "--quick", "--parts", *parts[:2], out=out)
    said, record = bench("train", "--quick", "--parts", *parts[2:], out=out)
    assert record["parts"] == first["parts"] and record["augmentation"] == first["augmentation"]
    assert set(parts[:3]) < set(record) and "throughput" not in record
    assert ("freed_memory" in record) == (platform.libc_ver()[0] == "glibc")
    assert all(math.isfinite(number) for number in numbers(record))
    assert record["augmentation"]["speedup"]["median"] > 0 and record["loop"]["ratio"]["median"] > 0
    assert len(record["targets"]) == 2 and "training loop" in said


def test_quick_split_writes_what_it_costs_and_whether_it_is_right(tmp_path):
    said, record = bench("split", "--quick", out=tmp_path / "split.json")
    (one,) = record["networks"]
    assert one["name"] == "U-Net" and one["invariant"] == 6 and one["weights"] == 8
    assert one["check"]["wrong"] == {} and one["check"]["invariant"]["rows"] == one["rows"] == 64
    assert one["check"]["invariant"]["largest_change"] < 1e-12 < 0.01 < one["check"]["rest"]["smallest_change"]
    assert [target["verdict"] for target in record["targets"]] == ["reached", "reached"]
    assert "U-Net: 6 of 8 weights" in said


def test_records_of_the_book_are_whole_measurements():
    for path in sorted((ROOT / "book" / "benchmarks").glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        assert path.stem == f"{record['benchmark']}-{record['device']}"
        assert not record["quick"] and record["environment"]["commit"]
        judged = {"split": split_targets, "step": step_targets, "train": train_targets}[record["benchmark"]]
        assert record["targets"] == judged(record)  # fails where a record is older than its form


def test_sweeps_are_timed_in_turns_and_compared_within_each():
    seen = []

    def timed(workers, runs, device, changes):
        seen.append(workers)
        return [(20 + len(seen)) / workers, 10 / workers]

    told = measure_sweep(CPU, rounds=7, timed=timed)
    assert seen == [1, 2, 2, 1] * 3 + [1, 2]
    assert told["runs"] == 24 and told["speedup"]["next"] == {"median": 2, "low": 2, "high": 2}
    first = told["speedup"]["first"]
    assert first["low"] < 2 < first["high"]  # whichever came later took longer
    short = measure_sweep(CPU, rounds=7, limit=0.0, timed=timed)
    assert short["rounds"] == len(short["seconds"]["next"]["2"]) == 1 and short["speedup"]["next"]["low"] is None


@pytest.mark.slow
def test_sweeps_are_timed_in_interpreters_of_their_own():
    told = measure_sweep(CPU, quick=True)
    assert all(value > 0 for by in told["seconds"].values() for values in by.values() for value in values)


def test_throughput_counts_operations_and_says_what_took_the_time():
    told = measure_throughput(CPU, network="wrn-10-1", batch=4, matrix=64, limit=0.0, min_rounds=2)
    assert told["images_per_second"]["median"] > 0 and told["share"]["median"] > 0
    shares = [operation["share"] for operation in told["operations"]]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1
    assert any("conv" in operation["name"] for operation in told["operations"])


def test_what_a_gpu_ran_is_counted_once():
    def event(key, device_type, annotation=False):
        return SimpleNamespace(key=key, device_type=device_type, is_user_annotation=annotation)

    cpu, cuda = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA
    seen = [event("aten::mm", cpu), event("gemm", cuda), event("Optimizer.step", cuda, annotation=True)]
    assert [found.key for found in _kernels(seen)] == ["gemm"]
