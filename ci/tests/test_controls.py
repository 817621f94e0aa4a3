"""Controls of SGD: rows held at a length, at another run's effective rate, or started at other lengths."""

import pytest
import torch
from torch import nn

from riembn import models, networks
from riembn.experiment import Store, preset
from riembn.geometry import Layout
from riembn.training import loop, train


@pytest.fixture
def joint():
    """A network whose one invariant weight is so together with its bias: a ReLU stands before the normalization."""

    def make(*, num_classes, in_channels):
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64 * in_channels, 12), nn.ReLU(), nn.BatchNorm1d(12), nn.Linear(12, num_classes)
        )

    networks["joint-rows"] = make
    yield "joint-rows"
    del networks["joint-rows"]


def config(network, **fields):
    small = {"train_size": 192, "batch_size": 32, "epochs": 3, "lr": 0.5, "weight_decay": 0.01, "rule": "invariant"}
    return preset(f"{network}/digits/sgd", **{**small, **fields})


def rows(run):
    return Layout().rows(run.model[1].weight.detach(), run.model[1].bias.detach())


def lengths(run):
    return rows(run).norm(dim=1)


def directions(run):
    return nn.functional.normalize(rows(run), dim=1)


def trained(run):
    """The run after its epochs, and the lengths after each step."""
    seen = [lengths(run)]
    for epoch in range(run.config.epochs):
        run._epoch(epoch, None, lambda *_: None, after_step=lambda: seen.append(lengths(run)))
    return seen


def test_frozen_rows_keep_their_length_with_their_bias(joint):
    run = loop.Run(config(joint, drops=(1,), lengths="frozen"), "cpu", None)
    assert any(group.get("joint") for group in run.found.groups())
    seen = trained(run)
    assert not torch.allclose(seen[0], seen[6], rtol=1e-3)  # free before the drop
    assert all(torch.allclose(held, seen[6], rtol=1e-5) for held in seen[7:])


def test_replayed_rows_turn_as_in_the_run_with_decay(joint):
    """Without momentum the rate lr/|w|^2 decides how far a row turns with its bias, to first order in lr * decay."""
    slow = {"lr": 2e-3, "momentum": 0.0, "weight_decay": 5.0, "epochs": 4, "drops": ()}
    turned, shortened = [], []
    for kind in ("free", "replayed"):
        run = loop.Run(config(joint, lengths=kind, **slow), "cpu", None)
        before = directions(run)
        seen = trained(run)
        turned.append(directions(run) - before)
        shortened.append(seen[-1] / seen[0])
    assert shortened[0].max() < 0.8 and shortened[1].min() > 0.999
    for part in (slice(-1), slice(-1, None)):  # the entries of the weight, and that of the bias
        free, replayed = (t[:, part] for t in turned)
        assert ((free - replayed).norm(dim=1) / free.norm(dim=1)).median() < 0.03  # some meet a kink of the ReLU


def test_rows_start_at_another_length_with_their_bias(joint):
    plain, scaled = (loop.Run(config(joint, row_scale=k), "cpu", None) for k in (0, 3))
    factor = lengths(scaled) / lengths(plain)
    assert torch.equal(factor, factor.log2().round().exp2()) and len(set(factor.tolist())) > 2
    x = torch.randn(16, 1, 8, 8)
    for run in (plain, scaled):
        run.model[3].eps = 1e-12
    torch.testing.assert_close(scaled.model(x), plain.model(x))  # the same function


def test_a_run_that_replays_a_diverged_one_is_diverged(tmp_path):
    # Decay alone makes the rows of the reference longer, until they overflow; those that replay it have none.
    free = config("vgg-11", width=1 / 16, lr=0.1, momentum=0.0, weight_decay=1e6, decay_on="invariant")
    store = Store(tmp_path)
    record = train(replayed := free.replace(lengths="replayed"), store=store)
    reference = train(free)
    assert record.status == reference.status == "diverged" and store.get(replayed) == record
    assert record.diverged_step == reference.diverged_step > 0


@pytest.mark.parametrize("asked", [{"lengths": "replayed"}, {"decay_on": "invariant"}, {"row_scale": 3}])
def test_controls_of_rows_need_rows(joint, asked):
    with pytest.raises(ValueError, match=rf"{next(iter(asked))}=.* is about invariant weights, .* by rule='paper'"):
        train(config(joint, rule="paper", **asked))


def test_lengths_of_a_checkpoint_come_to_the_weights_device():
    found = loop.Run(config("vgg-11", width=1 / 16, drops=(1,), lengths="frozen"), "cpu", None)
    held = found.lengths.now()
    meta = models.build("vgg-11", num_classes=10, in_channels=1, width=1 / 16).to("meta")
    lengths = loop.Lengths(found.config, found.found.rebind(meta), lambda _: None)
    lengths.load(held)
    assert lengths.state().device.type == "meta"
    lengths.load(None)
    assert lengths.state() is None
