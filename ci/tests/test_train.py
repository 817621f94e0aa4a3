"""A run is a function of its configuration: repeated, interrupted or killed, it ends the same to the last bit."""

import itertools
import math
import random
import subprocess
import sys
import time

import numpy
import pytest
import torch
from torch import nn

from riembn.experiment import Store, preset
from riembn.experiment.record import COLUMNS
from riembn.training import RunLocked, loop, train
from riembn.training.motion import Motion, probed_steps
from riembn.training.sums import Sums


def tiny(method="sgd-g", network="vgg-11", **fields):
    """A run of a fraction of a second."""
    small = {"width": 1 / 16, "train_size": 192, "batch_size": 32, "epochs": 3}
    return preset(f"{network}/digits/{method}", **{**small, **fields})


def weights(store, config):
    return store.checkpoints(config).newest()["model"]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("method", ["sgd", "sgd-g", "adam-g", "psi-sgd"])
def test_run_repeats_to_the_last_bit(tmp_path, method):
    config = tiny(method, augment=True, width=0.125)
    first, second = (train(config, store=tmp_path / place) for place in ("a", "b"))
    assert first.same_result(second)
    assert equal(weights(Store(tmp_path / "a"), config), weights(Store(tmp_path / "b"), config))
    other = train(config.replace(seed=1))
    assert other.columns["train_loss"] != first.columns["train_loss"]


class Interrupted(Exception):
    pass


def keep_nothing(epoch, sums=None):
    """Stands in for the checkpoints of a run."""


class Bar:
    """Stands in for its progress bar."""

    def update(self):
        pass


def interrupt_after(monkeypatch, epochs):
    """Make the next run stop after so many epochs."""
    whole = loop.Run._epoch

    def stopping(self, epoch, *rest):
        if epoch == epochs:
            raise Interrupted
        return whole(self, epoch, *rest)

    monkeypatch.setattr(loop.Run, "_epoch", stopping)


@pytest.mark.parametrize(
    ("method", "network", "fields"),
    [
        ("sgd", "vgg-11", {}),
        ("sgd-g", "wrn-10-1", {"dropout": 0.3, "augment": True, "drops": (1,), "width": 0.25}),
        ("adam-g", "vgg-11", {"drops": (2,)}),
        ("psi-sgd", "vgg-11", {"augment": True}),
    ],
)
def test_interrupted_run_ends_as_if_it_had_not_been(tmp_path, monkeypatch, method, network, fields):
    config = tiny(method, network, **fields)
    whole = train(config, store=tmp_path / "whole")
    for epochs in (2, 1):
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            interrupt_after(patch, epochs)
            train(config, store=tmp_path / f"{epochs}")
        store = Store(tmp_path / f"{epochs}")
        assert store.get(config) is None and store.checkpoints(config).newest()["epoch"] == epochs
        assert train(config, store=store).same_result(whole)
        assert equal(weights(store, config), weights(Store(tmp_path / "whole"), config))


def interrupt_at(monkeypatch, step):
    """Make the next run stop before it takes its step of this number, counted from here."""
    whole, taken = loop.Run._step, []

    def stopping(self):
        taken.append(1)
        if len(taken) > step:
            raise Interrupted
        whole(self)

    monkeypatch.setattr(loop.Run, "_step", stopping)


@pytest.mark.parametrize(
    ("method", "network", "fields"),
    [
        ("sgd", "vgg-11", {"accumulate": 2}),
        ("sgd-g", "wrn-10-1", {"dropout": 0.3, "augment": True, "drops": (1,), "width": 0.25}),
        ("adam-g", "vgg-11", {"precision": "bfloat16"}),
        ("psi-sgd", "vgg-11", {"precision": "float16"}),
    ],
)
def test_run_interrupted_within_an_epoch_ends_as_if_it_had_not_been(
    tmp_path, monkeypatch, method, network, fields
):
    config, store = tiny(method, network, **fields), Store(tmp_path / "parts")
    whole = train(config, store=tmp_path / "whole")
    for step in (2, 1, 7):  # of 18, so that it stops at 2, 3 and 10
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            interrupt_at(patch, step)
            train(config, store=store, checkpoint_minutes=0)
    state = store.checkpoints(config).newest()
    assert (state["epoch"], state["part"]["steps"]) == (1, 4)
    assert train(config, store=store, checkpoint_minutes=0).same_result(whole)
    assert equal(weights(store, config), weights(Store(tmp_path / "whole"), config))


def test_checkpoints_are_made_when_they_are_due(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(
        loop.Checkpoints, "save", lambda self, epoch, state, steps=0: saved.append((epoch, steps))
    )
    config = tiny(epochs=2)
    train(config, store=tmp_path / "epochs")
    assert saved == [(1, 0), (2, 0)]
    saved.clear()
    train(config, store=tmp_path / "hour", checkpoint_minutes=60)
    assert saved == [(2, 0)]
    saved.clear()
    train(config, store=tmp_path / "always", checkpoint_minutes=0)
    assert saved == [(epoch, step) for epoch in (0, 1) for step in range(6)][1:] + [(2, 0)]
    with pytest.raises(ValueError, match="checkpoint_minutes=-1 is not accepted; give 0 or more"):
        train(config, checkpoint_minutes=-1)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_learns_much_the_same(precision):
    """In the mean over seeds: a single run as short as this goes its own way after any rounding, of threads too."""
    pairs = [[train(tiny("sgd-g", precision=p, seed=seed)) for p in ("float32", precision)] for seed in range(4)]
    losses = numpy.mean([[record.columns["train_loss"] for record in pair] for pair in pairs], axis=0)
    assert (losses[0] != losses[1]).all() and losses[1] == pytest.approx(losses[0], rel=0.1)
    for _, rough in pairs:
        assert rough.columns["weight_norm"] == pytest.approx([1.0] * 3, abs=1e-5)  # kept in float32


def test_float16_scales_gradients_and_measures_them_unscaled(monkeypatch):
    run = loop.Run(tiny("sgd-g", precision="float16", epochs=1, train_size=None), "cpu", None)
    scales = []
    monkeypatch.setattr(run, "_step", lambda: (scales.append(run.scaler.get_scale()), loop.Run._step(run)))
    row, bad = run._epoch(0, Bar(), keep_nothing)
    assert bad is None and min(scales) >= 1024
    plain = loop.Run(tiny("sgd-g", epochs=1, train_size=None), "cpu", None)
    expected, _ = plain._epoch(0, Bar(), keep_nothing)
    assert row["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=0.5)


def test_parts_of_a_batch_add_up_to_its_gradient():
    whole, parts = (loop.Run(tiny("sgd", accumulate=k), "cpu", None) for k in (1, 4))
    images, labels = whole.images.train.images[:32], whole.images.train.labels[:32]
    parts._backward(images, labels, sums := Sums(), 0)
    expected = {name: torch.zeros_like(p) for name, p in whole.model.named_parameters()}
    losses = []
    for some, wanted in zip(images.split(8), labels.split(8), strict=True):
        whole.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(whole.model(whole.images.scaled(some)), wanted)
        loss.backward()
        losses.append(float(loss.detach()))
        for name, p in whole.model.named_parameters():
            expected[name] += p.grad / 4
    for name, p in parts.model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name])
    assert sums.read().loss == pytest.approx(sum(losses) / 4) and sums.bad == -1


def test_running_statistics_keep_their_share_over_a_step_of_several_parts():
    parts = loop.Run(tiny(bn_decay=0.75, accumulate=4), "cpu", None)
    alone = loop.Run(tiny(bn_decay=0.0), "cpu", None)
    images, labels = parts.images.train.images[:32], parts.images.train.labels[:32]
    parts._backward(images, labels, Sums(), 0)
    means = []
    for some, wanted in zip(images.split(8), labels.split(8), strict=True):
        alone._backward(some, wanted, Sums(), 0)
        means.append([b.clone() for n, b in alone.model.named_buffers() if n.endswith("running_mean")])
    found = [b for n, b in parts.model.named_buffers() if n.endswith("running_mean")]
    for after, *of_parts in zip(found, *means, strict=True):  # they start at 0
        torch.testing.assert_close(after, 0.25 * torch.stack(of_parts).mean(0))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler among its own parts
def test_compiled_network_differs_by_rounding_only():
    # Dropout too: a compiled network that drew its own random numbers would drop other values.
    config = tiny("sgd", "wrn-10-1", width=0.25, dropout=0.5, epochs=1)
    plain, compiled = train(config, device="cpu"), train(config, device="cpu", compile=True)
    assert compiled.environment["compiled_network"] and "compiled_network" not in plain.environment
    for name in ("train_loss", "test_loss", "angle"):
        assert compiled.columns[name] == pytest.approx(plain.columns[name], rel=1e-3)


def test_clock_that_is_set_back_leaves_times_positive(tmp_path, monkeypatch):
    clock = itertools.count(1_000_000, -100)
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    record = train(tiny(), store=tmp_path, checkpoint_minutes=0)
    assert record.environment["wall_seconds"] > 0
    assert all(value > 0 for value in record.columns["seconds"] + record.columns["images_per_second"])


def test_curves_are_drawn_for_tensorboard(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config, curves = tiny(), tmp_path / "curves"
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(patch, 2)
        train(config, store=tmp_path, tensorboard=curves)
    record = train(config, store=tmp_path, tensorboard=curves)
    found = EventAccumulator(str(curves / config.name)).Reload()
    for name in ("test_error", "angle", "peak_memory"):
        events = found.Scalars(name)
        assert [event.step for event in events] == [1, 2, 3]
        assert [event.value for event in events] == pytest.approx(record.columns[name], rel=1e-5)


def test_tensorboard_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        ImportError, match=r"TensorBoard is not installed; pip install 'riembn\[tensorboard\]'"
    ):
        train(tiny(), tensorboard="curves")


def test_damaged_checkpoint_costs_an_epoch_and_no_bit(tmp_path, monkeypatch):
    config, store = tiny(), Store(tmp_path / "damaged")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(patch, 2)
        train(config, store=store)
    newest = store.checkpoints(config).folder / "epoch-00002-step-0000000.pt"
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="set aside"):
        resumed = train(config, store=store)
    assert resumed.same_result(train(config))


def test_run_gone_on_with_elsewhere_says_where_it_was_before(tmp_path, monkeypatch):
    config, store = tiny(), Store(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(patch, 1)
        train(config, store=store)
    monkeypatch.setattr(loop, "environment", lambda _: {"device": "another", "threads": 1})
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_at(patch, 9)  # the same place again, and within an epoch
        train(config, store=store, checkpoint_minutes=0)
    monkeypatch.setattr(loop, "environment", lambda _: {"device": "a third", "threads": 1})
    found = train(config, store=store).environment
    first, second = found["earlier"]
    assert (first["device"], first["torch"], first["until_step"]) == ("cpu", torch.__version__, 6)
    assert (second["device"], second["until_step"], found["device"]) == ("another", 15, "a third")
    assert store.get(config).environment == found and "earlier" not in train(config).environment


def test_rest_of_an_epoch_is_not_drawn_on_another_kind_of_device(tmp_path, monkeypatch):
    config, store = tiny(augment=True), Store(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_at(patch, 3)
        train(config, store=store, checkpoint_minutes=0)
    kept = store.checkpoints(config)
    state = kept.newest()
    a_gpus = {"device": "cuda", "cuda_random": torch.zeros(16, dtype=torch.uint8)}
    part = {**state["part"], **a_gpus, "crops": torch.zeros(16, dtype=torch.uint8)}
    kept.save(0, {**state, "part": part}, steps=3)
    with pytest.raises(ValueError, match="within an epoch on device='cuda', .* go on there, or train anew"):
        train(config, store=store, device="cpu")
    assert kept.newest()["part"]["steps"] == 3
    assert train(config, store=store, device="cpu", resume=False).same_result(train(config, device="cpu"))


COMMAND = """
import sys, torch
torch.set_num_threads(1)
from riembn.experiment import RunConfig, Store
from riembn.training import train
config = RunConfig(**eval(sys.argv[2]))
train(config, store=sys.argv[1], checkpoint_minutes=eval(sys.argv[3]))
"""


@pytest.mark.slow
def test_killed_run_ends_as_if_it_had_not_been(tmp_path):
    config = tiny("sgd-g", "wrn-10-1", width=0.25, dropout=0.3, augment=True, epochs=9)
    store = Store(tmp_path / "killed")
    moment = random.Random(0)
    kills = 0
    every = [None, 0.0002, 0.0002]  # minutes: killed between epochs, and within
    while store.get(config) is None and kills < 20:
        start = [sys.executable, "-c", COMMAND, str(store.path), repr(config.as_dict())]
        start += [repr(every[kills % 3])]
        with subprocess.Popen(start) as process:
            folder = store.checkpoints(config).folder
            before = len(list(folder.glob("*.pt"))), max(folder.glob("*.pt"), default=None)
            # Kill at a random moment after the next sign of progress: in training, evaluation or writing.
            while process.poll() is None and before == (
                len(list(folder.glob("*.pt"))),
                max(folder.glob("*.pt"), default=None),
            ):
                time.sleep(0.002)
            time.sleep(moment.random() * 0.15)
            if kills < 3:
                process.kill()
        kills += 1
    assert kills >= 3
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = train(config, store=tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    assert store.get(config).same_result(whole)
    assert equal(weights(store, config), weights(Store(tmp_path / "whole"), config))


def test_record_that_is_there_is_read_and_not_trained(tmp_path, monkeypatch):
    config = tiny(epochs=1)
    record = train(config, store=tmp_path)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 0)
        assert train(config, store=tmp_path) == record
        with pytest.raises(Interrupted):
            train(config, store=tmp_path, resume=False)
    again = train(config, store=tmp_path, resume=False)
    assert again.same_result(record)


def test_record_lost_after_the_last_epoch_is_written_again(tmp_path, monkeypatch):
    config, store = tiny(epochs=2), Store(tmp_path)
    record = train(config, store=store)
    (path,) = tmp_path.glob("*.json")
    path.unlink()
    with monkeypatch.context() as patch:
        interrupt_after(patch, 0)  # nothing is left to train
        assert train(config, store=store).same_result(record)


def test_run_of_another_process_is_left_to_it(tmp_path):
    config, store = tiny(), Store(tmp_path)
    with (
        store.lock(config).acquire(timeout=0),
        pytest.raises(RunLocked, match="another process trains vgg-11"),
    ):
        train(config, store=store)
    assert train(config, store=store).status == "finished"


def test_record_holds_what_happened():
    config = tiny("sgd-g", epochs=3, drops=(1, 2), drop_factor=0.1)
    record = train(config)
    columns = record.columns
    assert columns["epoch"] == [1, 2, 3] and columns["step"] == [6, 12, 18]
    assert columns["current_lr"] == pytest.approx([0.2, 0.02, 0.002])
    assert columns["effective_lr"] == columns["current_lr"]
    assert columns["weight_norm"] == pytest.approx([1.0] * 3, abs=1e-5)
    assert all(0 <= share <= 1 for share in columns["clipped"])
    # The momentum of the higher rate fades over the epoch, so that the angle falls by less than the rate.
    assert columns["angle"][0] > columns["angle"][1] > columns["angle"][2] > 0
    assert columns["train_loss"][2] < columns["train_loss"][0]
    assert all(0 <= e <= 100 for name in ("train_error", "test_error") for e in columns[name])
    assert record.environment["threads"] == torch.get_num_threads()
    assert record.environment["torch"] == torch.__version__
    assert record.environment["wall_seconds"] >= sum(columns["seconds"]) * 0.99


def test_sgd_is_measured_on_the_same_weights():
    columns = train(tiny("sgd", epochs=1)).columns
    assert columns["clipped"] == [None]
    assert columns["effective_lr"][0] == pytest.approx(0.1 / columns["weight_norm"][0] ** 2, rel=0.2)
    assert columns["angle"][0] > 0 and columns["cosine"][0] > 0


def test_learning_rates_of_both_parts_drop_together():
    run = loop.Run(tiny(epochs=3, drops=(1, 2), drop_factor=0.5), "cpu", None)
    seen = []

    class Rates:
        def update(self):
            seen.append([group["lr"] for group in run.optimizer.param_groups])

    for epoch in range(3):
        run._epoch(epoch, Rates(), keep_nothing)
    rates = [seen[step] for step in (0, 6, 12)]
    assert rates[0] == run.rates and set(run.rates) == {0.2, 0.01}
    assert rates[1] == [0.5 * rate for rate in run.rates]
    assert rates[2] == [0.25 * rate for rate in run.rates]


def test_diverged_run_is_recorded_with_its_step(tmp_path):
    config = tiny("sgd", lr=1e18, epochs=2)
    store = Store(tmp_path)
    record = train(config, store=store)
    assert record.status == "diverged" and record.columns["epoch"] == []
    assert store.get(config) == record
    # The step is the first whose loss was not finite: the losses before it are.
    run = loop.Run(config, "cpu", None)
    losses = []
    cross_entropy = loop.functional.cross_entropy

    def listening(scores, labels, **options):
        loss = cross_entropy(scores, labels, **options)
        losses.append(float(loss.detach()))
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.functional, "cross_entropy", listening)
        _, step = run._epoch(0, Bar(), keep_nothing)
    assert step == record.diverged_step
    assert [math.isfinite(loss) for loss in losses[: step + 1]] == [True] * step + [False]


def test_callers_random_numbers_are_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    train(tiny(epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_training_is_quiet_without_a_terminal(capfd):
    train(tiny("sgd", epochs=1))  # nothing to compile either
    assert capfd.readouterr() == ("", "")


def test_batch_larger_than_the_set_is_refused():
    with pytest.raises(
        ValueError, match=r"batch_size=2000.* do not fit the \d+ training images of digits"
    ):
        train(tiny(train_size=None, batch_size=2000))


def test_running_statistics_follow_the_configuration():
    run = loop.Run(tiny(bn_decay=0.75), "cpu", None)
    momenta = {m.momentum for m in run.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert momenta == {0.25}


def test_probed_steps_are_spread_over_the_epoch():
    assert probed_steps(3) == {0, 1, 2}
    assert probed_steps(80) == {5, 15, 25, 35, 45, 55, 65, 75}
    assert all(len(probed_steps(n)) == min(8, n) for n in range(1, 200))


def test_probe_measures_angles_gradients_and_lengths():
    # Two rows in the plane, lengths 2 and 1; the gradient of the second is radial.
    weight = nn.Parameter(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    weight.grad = torch.tensor([[0.0, 0.3], [0.0, 5.0]])
    probe = Motion([{"params": [weight]}], grad_clip=0.5, alpha=0.0)
    probe.before_step()
    with torch.no_grad():
        weight.copy_(torch.tensor([[3.0, 3.0], [0.0, 4.0]]))
    probe.after_step()
    found = probe.motion()
    assert found["angle"] == pytest.approx(math.pi / 8)  # 45 degrees and none
    assert found["gradient_norm"] == pytest.approx(0.3)  # 2 * 0.3 at unit length, and 0
    assert found["clipped"] == 0.5
    assert probe.motion()["angle"] is None
    state = probe.state(0.1, unit_free=False)
    length = math.sqrt(18)
    assert state["weight_norm"] == pytest.approx((length + 4) / 2)
    assert state["effective_lr"] == pytest.approx((0.1 / 18 + 0.1 / 16) / 2)
    assert state["orthogonality"] == pytest.approx(0.5)  # one pair, 45 degrees
    assert state["cosine"] == pytest.approx(math.sqrt(0.5))


def test_probe_counts_the_regularizers_gradient():
    y = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]), dim=1)
    weight = nn.Parameter(y.clone())
    weight.grad = torch.zeros_like(weight)
    probe = Motion([{"params": [weight]}], grad_clip=None, alpha=0.1)
    probe.before_step()
    probe.after_step()
    found = probe.motion()
    # 2 alpha c (y_j - c y_i), whose length is 2 alpha c sqrt(1 - c^2) with c^2 = 1/2.
    assert found["gradient_norm"] == pytest.approx(0.1)
    assert found["clipped"] is None and found["angle"] == 0.0


def test_probe_leaves_out_a_step_that_a_gradient_scaler_skips():
    weight = nn.Parameter(torch.tensor([[0.0, 1.0]]))
    probe = Motion([{"params": [weight]}], grad_clip=0.5, alpha=0.0)
    for along in (0.3, math.inf, 0.5):
        weight.grad = torch.tensor([[along, 0.0]])
        probe.before_step()
        probe.after_step()
    assert probe.motion()["gradient_norm"] == pytest.approx(0.4)


def test_network_without_such_weights_is_measured_as_unknown():
    probe = Motion([], grad_clip=0.1, alpha=0.0)
    probe.before_step()
    probe.after_step()
    assert set(probe.motion().values()) == {None}
    assert set(probe.state(0.1, unit_free=True).values()) == {None}


def test_columns_are_documented():
    assert set(train(tiny(epochs=1)).columns) == set(COLUMNS)
