"""A sweep runs what is missing, loses nothing to a failure, and gives the same numbers side by side."""

import contextlib
import gc
import json
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import time
from types import SimpleNamespace

import joblib
import pytest
import torch
from test_seam import LION

from riembn import methods, networks
from riembn.additions import load_plugin
from riembn.experiment import RunConfig, Store, grid, preset
from riembn.experiment.record import MACHINE
from riembn.training import SweepFailed, loop, sweep, train, workers


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

    monkeypatch.setattr(workers, "train", counting)
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
    frame = sweep([tiny(epochs=1).replace(method="sgd", grad_clip=clip) for clip in (0.1, 0.5, None)], store=tmp_path)
    assert len(frame) == len(trained) == 1


def test_failure_of_a_run_leaves_the_others(tmp_path):
    good = grid(tiny(epochs=1), seed=range(2))
    bad = tiny(train_size=None, batch_size=5000)
    with pytest.raises(SweepFailed) as caught:
        sweep([good[0], bad, good[1]], store=tmp_path)
    assert str(caught.value).startswith("sweep: 1 of 3 runs failed, the others are in the store:")
    assert f"{bad.name}: ValueError: train: batch_size=5000" in str(caught.value)
    assert "Traceback" in caught.value.errors[bad.name]
    assert all(Store(tmp_path).get(config) for config in good)
    assert len(sweep(good, store=tmp_path)) == 2


def test_failed_run_is_remembered_and_tried_again_when_asked(tmp_path, trained, monkeypatch):
    good, bad = grid(tiny(epochs=1), seed=range(2))
    counting, error = workers.train, RuntimeError("out of luck")

    def unlucky(config, **options):
        if config == bad:
            trained.append(config.name)
            raise error
        return counting(config, **options)

    monkeypatch.setattr(workers, "train", unlucky)
    for again in ({}, {}, {"retry_failed": True}):
        with pytest.raises(SweepFailed, match="1 of 2 runs failed") as caught:
            sweep([good, bad], store=tmp_path, **again)
        assert caught.value.errors[bad.name].endswith("RuntimeError: out of luck\n")
    assert trained == [good.name, bad.name, bad.name]  # not tried the second time
    assert Store(tmp_path).failures().keys() == {bad.name}
    monkeypatch.setattr(workers, "train", counting)
    with pytest.raises(SweepFailed, match="1 of them failed in an earlier sweep and were not tried again"):
        sweep([good, bad], store=tmp_path)
    assert len(sweep([good, bad], store=tmp_path, retry_failed=True)) == 2
    assert Store(tmp_path).failures() == {}


def test_what_the_machine_lacked_is_not_held_against_a_run(tmp_path, monkeypatch):
    def nothing_there(*_):
        raise FileNotFoundError("no data")

    with monkeypatch.context() as patch, pytest.raises(SweepFailed, match="FileNotFoundError: no data"):
        patch.setattr(loop.data, "load", nothing_there)
        sweep([tiny()], store=tmp_path)
    assert Store(tmp_path).failures() == {} and len(sweep([tiny()], store=tmp_path)) == 2


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
    two = sweep(configs, store=tmp_path / "two", n_jobs=2, device=["cpu", "cpu:0"])
    assert numbers(one).equals(numbers(two))


COLLECTED = """
import gc, multiprocessing, riembn, torch

def collected(num_classes, in_channels):
    assert gc.isenabled()
    is_own = multiprocessing.parent_process() is not None  # a process of the sweep, whose imports stay
    assert (gc.get_freeze_count() > 10_000) is is_own
    layers = torch.nn.Conv2d(in_channels, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten()
    return torch.nn.Sequential(*layers, torch.nn.Linear(4 * 6 * 6, num_classes))

riembn.networks["collected"] = collected
"""


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_runs_train_with_the_garbage_collector_on(tmp_path, n_jobs):
    (tmp_path / "plugin.py").write_text(COLLECTED)
    load_plugin(tmp_path / "plugin.py")
    try:
        config = preset("vgg-11/digits/sgd", network="collected", width=1.0, train_size=96, batch_size=32, epochs=1)
        sweep([config], store=tmp_path / "store", n_jobs=n_jobs)
    finally:
        del networks["collected"]
    assert gc.isenabled()


def test_several_devices_are_taken_in_turn(monkeypatch):
    assert workers.devices("cuda:1", 4) == ("cuda:1",)
    assert workers.devices(["cuda:0", "cuda:1"], 1) == ("cuda:0", "cuda:1")
    assert workers.devices(None, 4) == (None,)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert workers.devices(None, 1) == (None,)  # one run at a time goes where it always went
    assert workers.devices(None, 2) == ("cuda:0", "cuda:1", "cuda:2")


def test_processes_are_one_a_device_of_several_or_one_a_core():
    cores = joblib.effective_n_jobs(-1)
    assert workers.processes(("cuda:0", "cuda:1"), 1) == workers.processes(("cuda:0", "cuda:1"), -1) == 2
    assert workers.processes(("cuda:0", "cuda:1"), 4) == 4 and workers.processes(("a", "b", "c"), 2) == 2
    assert workers.processes(("cuda:1",), -1) == workers.processes(("cuda:1",), 1) == 1
    for on in (None, "cpu"):
        assert workers.processes((on,), 1) == 1 and workers.processes((on,), 3) == 3
        assert workers.processes((on,), -1) == cores


def test_runs_at_work_share_no_device_while_one_is_free(tmp_path):
    places = workers.Places(tmp_path, 4, ("a", "b"), asked_by=0)
    with contextlib.ExitStack() as stack:
        assert [stack.enter_context(places.taken()) for _ in range(4)] == ["a", "b", "a", "b"]
    with places.taken() as one, places.taken() as two:
        assert (one, two) == ("a", "b")


def test_runs_are_given_their_devices_and_options(tmp_path, monkeypatch):
    seen = []

    def looking(config, **options):
        seen.append(options)
        return train(config, **{**options, "device": "cpu"})

    monkeypatch.setattr(workers, "train", looking)
    monkeypatch.setattr(sys.modules["riembn.training.sweep"], "check_device", lambda place: None)
    configs = grid(tiny(epochs=1), seed=range(2))
    sweep(configs, store=tmp_path, device="cuda:1", checkpoint_minutes=5)
    assert [options["device"] for options in seen] == ["cuda:1", "cuda:1"]
    assert all(options["checkpoint_minutes"] == 5 for options in seen)
    with pytest.raises(TypeError, match=r"sweep: no argument resum; runs accept compile"):
        sweep(configs, store=tmp_path, resum=False)


@pytest.mark.parametrize(("own", "begun"), [(True, 0), (False, 1)])
def test_only_a_process_that_the_sweep_has_made_begins_as_one(tmp_path, monkeypatch, own, begun):
    begins = []
    monkeypatch.setattr(workers, "_start", lambda: begins.append(None))
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())  # the caller can be somebody's worker
    places = workers.Places(tmp_path, 1, (None,), os.getpid() if own else 0)
    job = {"store": tmp_path / "store", "wait": False, "options": {}}
    assert not workers._run(tiny(epochs=1), places=places, **job).error and len(begins) == begun


@pytest.mark.parametrize(("own", "kept"), [(True, 0), (False, 1)])
def test_a_worker_of_a_cluster_that_is_a_thread_of_the_caller_leaves_its_memory_alone(tmp_path, monkeypatch, own, kept):
    keeps = []
    monkeypatch.setattr(workers, "keep_freed_memory", lambda: keeps.append(None))
    job = {"store": tmp_path / "store", "wait": False, "options": {}}
    ended = workers._run_on_cluster(tiny(epochs=1), asked_by=os.getpid() if own else 0, **job)
    assert not ended.error and len(keeps) == kept


DEADLY = """
import os, signal, sys
from riembn.experiment import grid
from riembn.training import SweepFailed, sweep, workers
from riembn.experiment import preset

def train(config, **options):
    marks = options["store"].path / "tries"
    marks.mkdir(parents=True, exist_ok=True)
    tries = len(list(marks.glob(f"{config.seed}-*")))
    (marks / f"{config.seed}-{tries}").touch()
    if config.seed == 1 or (config.seed == 2 and tries == 0):
        os.kill(os.getpid(), signal.SIGKILL)  # 1 dies always, 2 once
    return living(config, **options)

def run(*args, **options):  # by whose name the workers import this module, and what it replaces
    return working(*args, **options)

living, workers.train = workers.train, train
working, workers._run = workers._run, run

def main():
    base = preset("vgg-11/digits/sgd-g", width=0.0625, train_size=96, batch_size=32, epochs=2)
    try:
        sweep(grid(base, seed=range(3)), store=sys.argv[1], n_jobs=2)
    except SweepFailed as error:
        print(error)
"""


@pytest.mark.slow
def test_run_that_kills_its_process_fails_alone(tmp_path):
    (tmp_path / "deadly.py").write_text(DEADLY)
    done = subprocess.run(
        [sys.executable, "-c", "import deadly; deadly.main()", tmp_path / "store"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
    )
    assert "1 of 3 runs failed" in done.stdout and "its process died: it was killed" in done.stdout, (
        done.stderr
    )
    assert sorted(record.config.seed for record in Store(tmp_path / "store").records()) == [0, 2]


def dask(*words):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    start = [sys.executable, "-m", "dask", *map(str, words), "--no-dashboard"]
    return subprocess.Popen(start, **quiet, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Dask among its own parts
def test_cluster_that_loses_a_worker_loses_no_run(tmp_path):
    pytest.importorskip("distributed")
    found, store = tmp_path / "scheduler.json", Store(tmp_path / "store")
    configs = grid(tiny(epochs=12), seed=range(6))
    with contextlib.ExitStack() as stack:

        def started(*words):
            process = stack.enter_context(dask(*words))
            stack.callback(process.kill)
            return process

        started("scheduler", "--scheduler-file", found, "--host", "127.0.0.1", "--port", "0")
        while not (found.exists() and found.read_text().rstrip().endswith("}")):
            time.sleep(0.05)
        options = ["--scheduler-file", found, "--nthreads", "1", "--no-nanny", "--local-directory", tmp_path]
        unlucky, _ = (started("worker", *options, "--name", name) for name in ("a", "b"))
        address = json.loads(found.read_text())["address"]
        killed = []

        def kill():
            while (
                len(list(store.path.glob("checkpoints/*/"))) < 2
            ):  # both workers are in the middle of a run, or past it
                time.sleep(0.01)
            unlucky.kill()
            killed.append(len(list(store.path.glob("*.json"))))

        killer = threading.Thread(target=kill)
        killer.start()
        frame = sweep(configs, store=store, backend="dask", address=address)
        killer.join()
        # A method that only this process has goes to the workers with its runs.
        plugin = tmp_path / "mine.py"
        plugin.write_text(textwrap.dedent(LION))
        load_plugin(plugin)
        stack.callback(methods.pop, "lion-g")
        mine = [tiny("lion-g", epochs=1)]
        assert (sweep(mine, store=tmp_path / "mine", backend="dask", address=address)["status"] == "finished").all()
    assert killed[0] < len(configs)
    assert list(frame.groupby("digest").size()) == [12] * 6 and sorted(set(frame["seed"])) == list(range(6))
    assert len(list(store.path.glob("*.json"))) == 6 and store.verify() == []
    # What the killed worker was at went on from its checkpoint, with nothing lost or done twice.
    alone = sweep(configs[:2], store=tmp_path / "alone")
    assert numbers(alone).equals(numbers(frame[frame["seed"] < 2]).reset_index(drop=True))


class Cluster:
    """Stands in for Dask: every run comes to one end, and the keys are seen."""

    def __init__(self, status="finished", error=None, threads=1):
        self.ends, self.threads, self.keys = (status, error), threads, []

    def Client(self, address):
        return contextlib.nullcontext(self)

    def nthreads(self):
        return {"tcp://127.0.0.1:2": self.threads}

    def map(self, run, configs, *, key, pure):
        assert not pure
        self.keys += key
        status, error = self.ends
        return [
            SimpleNamespace(
                key=name, status=status, exception=lambda: error, result=lambda c=c: workers.Ended(c, "no luck")
            )
            for name, c in zip(key, configs, strict=True)
        ]

    def as_completed(self, futures):
        return iter(futures)


@pytest.mark.parametrize(
    ("status", "error", "said", "noted"),
    [
        ("finished", None, "no luck", True),
        ("error", RuntimeError("4 workers died"), "RuntimeError: 4 workers died", True),
        ("error", ModuleNotFoundError("no riembn"), "ModuleNotFoundError: no riembn", False),
        ("error", OSError("scheduler is gone"), "OSError: scheduler is gone", False),
        ("cancelled", None, "the cluster gave it up (cancelled); the same sweep tries it again", False),
    ],
)
def test_failures_of_a_cluster_are_not_held_against_a_run(tmp_path, monkeypatch, status, error, said, noted):
    monkeypatch.setitem(sys.modules, "distributed", Cluster(status, error))
    with pytest.raises(SweepFailed) as caught:
        sweep([tiny()], store=tmp_path, backend="dask", address="tcp://127.0.0.1:1")
    assert caught.value.errors == {tiny().name: said}
    assert (tiny().name in Store(tmp_path).failures()) == noted


def test_sweeps_into_two_stores_share_no_task(tmp_path, monkeypatch):
    cluster = Cluster("cancelled")
    monkeypatch.setitem(sys.modules, "distributed", cluster)
    for store in ("one", "two"):
        with pytest.raises(SweepFailed):
            sweep([tiny()], store=tmp_path / store, backend="dask", address="tcp://127.0.0.1:1")
    assert len(set(cluster.keys)) == 2 and all(key.startswith(tiny().name) for key in cluster.keys)


def test_workers_of_several_threads_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", Cluster(threads=4))
    with pytest.raises(ValueError, match=r"worker tcp://127.0.0.1:2 has 4 threads, .* with --nthreads 1"):
        sweep([tiny()], store=tmp_path, backend="dask", address="tcp://127.0.0.1:1")


@pytest.mark.parametrize("backend", ["nowhere", "multiprocessing"])
def test_a_backend_that_does_not_exist_or_gives_nothing_until_all_are_done_is_refused(tmp_path, backend):
    with pytest.raises(ValueError, match=f"sweep: backend='{backend}' is not accepted.*give None"):
        sweep([tiny()], store=tmp_path, n_jobs=2, backend=backend)
    assert not list(tmp_path.rglob("*.json"))


def test_runs_that_failed_alike_are_told_in_one_line():
    said = {"a": "Error: no data", "b": "Error: other", "c": "Error: no data"}
    errors = {name: f"Traceback\n{line}" for name, line in said.items()}
    failed = SweepFailed(errors, 5)
    assert str(failed).splitlines()[1:] == ["  a and 1 more: Error: no data", "  b: Error: other"]
    assert failed.errors == errors


def test_cluster_needs_an_address(tmp_path):
    for options in ({"backend": "dask"}, {"address": "tcp://127.0.0.1:1"}):
        with pytest.raises(ValueError, match='give backend="dask" and its scheduler\'s address'):
            sweep([tiny()], store=tmp_path, **options)
    with pytest.raises(ValueError, match="give one for all its workers"):
        sweep([tiny()], store=tmp_path, backend="dask", address="tcp://127.0.0.1:1", device=["cpu", "cpu:0"])


def test_run_of_another_process_is_waited_for(tmp_path, monkeypatch):
    configs = grid(tiny(epochs=1), seed=range(2))
    monkeypatch.setattr(workers, "_POLL_SECONDS", 0.01)
    order = []

    def locked_at_first(config, **options):
        order.append(config.seed)
        if order.count(0) == 1 and config.seed == 0:
            raise workers.RunLocked
        return train(config, **options)

    monkeypatch.setattr(workers, "train", locked_at_first)
    frame = sweep(configs, store=tmp_path)
    assert order == [0, 1, 0] and list(frame["seed"]) == [0, 1]


COMMAND = """
import sys
from riembn.experiment import grid
from riembn.training import sweep
from riembn.experiment import preset
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
    assert sorted(record.config.seed for record in records) == list(range(6))
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
