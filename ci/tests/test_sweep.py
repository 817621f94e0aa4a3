"""A sweep runs what is missing, loses nothing to a failure, and gives the same numbers side by side."""

import importlib
import subprocess
import sys

import pytest
import torch

from riembn.experiment import RunConfig, Store, SweepFailed, grid, preset, sweep, train
from riembn.experiment.record import MACHINE

module = importlib.import_module("riembn.experiment.sweep")


def tiny(method="sgd-g", **fields):
    small = {"width": 1 / 16, "train_size": 96, "batch_size": 32, "epochs": 2}
    return preset(f"vgg-11/digits/{method}", **{**small, **fields})


def numbers(frame):
    return frame.drop(columns=list(MACHINE))


@pytest.fixture
def trained(monkeypatch):
    """Names of the runs that are trained, not read."""
    names = []

    def counting(config, **options):
        names.append(config.name)
        return train(config, **options)

    monkeypatch.setattr(module, "train", counting)
    return names


def test_grid_is_every_combination():
    configs = grid(tiny(), grad_clip=[0.1, None], seed=range(2))
    assert [(c.grad_clip, c.seed) for c in configs] == [(0.1, 0), (0.1, 1), (None, 0), (None, 1)]
    assert grid(tiny()) == [tiny()]


def test_only_missing_runs_are_trained(tmp_path, trained):
    configs = grid(tiny(), seed=range(2))
    first = sweep(configs[:1], store=tmp_path)
    both = sweep([*configs, configs[0]], store=tmp_path)
    assert trained == [configs[0].name, configs[1].name]
    assert len(first) == 2 and list(both["seed"]) == [0, 0, 1, 1] and list(both["epoch"]) == [1, 2, 1, 2]
    assert both["grad_clip"].eq(0.1).all() and set(both["status"]) == {"finished"}
    again = sweep(configs[::-1], store=str(tmp_path))
    assert list(again["seed"]) == [1, 1, 0, 0] and len(trained) == 2


def test_configurations_that_compute_the_same_run_once(tmp_path, trained):
    frame = sweep(grid(tiny("sgd", epochs=1), grad_clip=[0.1, 0.5, None]), store=tmp_path)
    assert len(frame) == len(trained) == 1


def test_failure_of_a_run_leaves_the_others(tmp_path):
    good = grid(tiny(epochs=1), seed=range(2))
    bad = tiny(train_size=None, batch_size=5000)
    with pytest.raises(SweepFailed) as caught:
        sweep([good[0], bad, good[1]], store=tmp_path)
    assert str(caught.value).startswith("sweep: 1 of 3 runs failed, the others are in the store:")
    assert f"{bad.name}: ValueError: train: batch_size=5000 exceeds" in str(caught.value)
    assert "Traceback" in caught.value.errors[bad.name]
    assert all(Store(tmp_path).get(config) for config in good)
    assert len(sweep(good, store=tmp_path)) == 2


def test_damaged_record_is_not_trained_over(tmp_path):
    config = tiny(epochs=1)
    sweep([config], store=tmp_path)
    (path,) = tmp_path.glob("*.json")
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ValueError, match="remove it to run it again"):
        sweep([config], store=tmp_path)


def test_diverged_run_is_a_result(tmp_path):
    frame = sweep([tiny("sgd", lr=1e18)], store=tmp_path)
    assert list(frame["status"]) == ["diverged"] and list(frame["epoch"]) == [0]


def test_threads_are_one_during_and_as_before_after(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        sweep([tiny(epochs=1)], store=tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    (record,) = Store(tmp_path).records()
    assert record.environment["threads"] == 1


@pytest.mark.slow
def test_numbers_do_not_depend_on_how_many_run_side_by_side(tmp_path):
    configs = grid(tiny(), seed=range(3))
    one = sweep(configs, store=tmp_path / "one")
    two = sweep(configs, store=tmp_path / "two", n_jobs=2)
    assert numbers(one).equals(numbers(two))


def test_run_of_another_process_is_waited_for(tmp_path, monkeypatch):
    configs = grid(tiny(epochs=1), seed=range(2))
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)
    order = []

    def locked_at_first(config, **options):
        order.append(config.seed)
        if order.count(0) == 1 and config.seed == 0:
            raise module.RunLocked
        return train(config, **options)

    monkeypatch.setattr(module, "train", locked_at_first)
    frame = sweep(configs, store=tmp_path)
    assert order == [0, 1, 0] and list(frame["seed"]) == [0, 1]


COMMAND = """
import sys
from riembn.experiment import grid, preset, sweep
base = preset("vgg-11/digits/sgd-g", width=0.0625, train_size=96, batch_size=32, epochs=2)
print(len(sweep(grid(base, seed=range(6)), store=sys.argv[1])))
"""


@pytest.mark.slow
def test_two_processes_fill_one_store_and_lose_nothing(tmp_path):
    start = [sys.executable, "-c", COMMAND, str(tmp_path)]
    both = [subprocess.Popen(start, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == ["12\n"] * 2
    assert [process.returncode for process in both] == [0, 0]
    records = list(Store(tmp_path).records())
    assert sorted(record.seed for record in records) == list(range(6))
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("*.damaged"))


def test_progress_is_a_line_a_run_off_a_terminal_and_only_if_asked(tmp_path, capfd):
    configs = grid(tiny("sgd", epochs=1), seed=range(2))
    sweep(configs[:1], store=tmp_path)
    assert capfd.readouterr() == ("", "")
    sweep(configs, store=tmp_path, progress=True)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("1/1 ") and line.endswith(f"done: {configs[1].name}")


def test_no_configurations_are_an_empty_frame(tmp_path):
    assert sweep([], store=tmp_path).empty


def test_grid_refuses_unknown_fields():
    with pytest.raises(TypeError, match="no field clip"):
        grid(tiny(), clip=[1])
    assert isinstance(grid(tiny(), seed=[1])[0], RunConfig)
