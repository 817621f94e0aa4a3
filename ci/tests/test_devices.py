"""A run on two devices is the run of one: its numbers to rounding, its files, its refusals."""

import contextlib
import copy
import os
import subprocess
import sys
import tempfile

import pytest
import torch
import torch.distributed as dist
from pair import Checks, ask

from riembn.experiment import Store, preset
from riembn.experiment.checkpoint import Checkpoints
from riembn.models.layers import BatchNorm
from riembn.training import RunLocked, loop, train
from riembn.training.batch_norm import normalize_across
from riembn.training.devices import Devices

pytestmark = pytest.mark.xdist_group("distributed")  # one pair of processes at a time

both = Checks()


def tiny(method="sgd-g", network="vgg-11", **fields):
    """A run of a fraction of a second, at rates at which rounding does not grow."""
    small = {"width": 0.25, "train_size": 192, "batch_size": 64, "epochs": 2, "augment": True, "lr": 0.02}
    return preset(f"{network}/digits/{method}", **{**small, **fields})


def alone(config, **options):
    """The run in this process only, and its final weights."""
    run = loop.Run(config, "cpu", None)
    kept = dict(resume=True, minutes=None, progress=False, tensorboard=None)
    return run.to_record(None, **{**kept, **options}), run.model.state_dict()


def one_folder():
    """A folder that both processes know."""
    box = [tempfile.mkdtemp()]
    dist.broadcast_object_list(box)
    return box[0]


def final_weights(store, config):
    return store.checkpoints(config).newest()["model"]


def assert_close(record, weights, expected_record, expected_weights):
    for name in ("train_loss", "test_loss", "angle", "gradient_norm", "weight_norm", "orthogonality"):
        found, expected = record.columns[name], expected_record.columns[name]
        assert found == pytest.approx(expected, rel=1e-3), f"{record.config} {name} {found} {expected}"
    for name, value in expected_weights.items():
        if value.is_floating_point():
            torch.testing.assert_close(
                weights[name], value, rtol=1e-2, atol=2e-3, msg=lambda m, n=name: n + m
            )


@both
def two_devices_compute_the_run_of_one():
    for method, network, fields in (
        ("sgd-g", "vgg-11", {"accumulate": 2, "alpha": 0.1}),  # per-device statistics
        ("adam-g", "wrn-10-1", {"accumulate": 4, "dropout": 0.3, "width": 1.0}),
        ("sgd-g", "vgg-11", {}),  # statistics of the whole batch
        ("sgd", "vgg-11", {"lr": 0.002}),
    ):
        config = tiny(method, network, **fields)
        expected = alone(config) if dist.get_rank() == 0 else None
        for shard in (False, True):
            store = Store(one_folder())
            record = train(config, store=store, device="cpu", shard=shard)
            assert record.environment["devices"] == 2 and record.environment["sharded"] == shard
            assert store.get(config).same_result(record)
            assert train(config, store=store, device="cpu", shard=shard) == record  # read, not trained
            if expected:
                assert_close(record, final_weights(store, config), *expected)


class Interrupted(Exception):
    pass


@both
def interrupted_run_ends_as_if_it_had_not_been():
    config = tiny("adam-g", accumulate=2)
    whole_step = loop.Run._step
    for shard in (False, True):
        expected, store = Store(one_folder()), Store(one_folder())
        train(config, store=expected, device="cpu", shard=shard)
        for steps in (1, 3):  # of 6, so that it stops at 1, and at 4 in the second epoch
            taken = []

            def stopping(run, taken=taken, steps=steps):
                if len(taken) == steps:
                    raise Interrupted
                taken.append(run)
                whole_step(run)

            loop.Run._step = stopping
            with pytest.raises(Interrupted):
                train(config, store=store, device="cpu", shard=shard, checkpoint_minutes=0)
            loop.Run._step = whole_step
            dist.barrier()
        record = train(config, store=store, device="cpu", shard=shard, checkpoint_minutes=0)
        assert record.same_result(expected.get(config))
        weights, wanted = final_weights(store, config), final_weights(expected, config)
        assert all(torch.equal(weights[name], wanted[name]) for name in wanted)


@both
def run_goes_on_with_other_devices():
    config = tiny("adam-g", accumulate=2)
    store = Store(one_folder())
    whole_epoch = loop.Run._epoch

    def stopping(run, epoch, *rest):
        if epoch == 1:
            raise Interrupted
        return whole_epoch(run, epoch, *rest)

    loop.Run._epoch = stopping
    with pytest.raises(Interrupted):
        train(config, store=store, device="cpu", shard=True)
    loop.Run._epoch = whole_epoch
    dist.barrier()
    if dist.get_rank() == 0:  # one device takes over what two have begun
        run = loop.Run(config, "cpu", None)
        record = run.to_record(
            store.checkpoints(config), resume=True, minutes=None, progress=False, tensorboard=None
        )
        assert record.environment["wall_seconds"] > 0 and len(record.columns["epoch"]) == 2
        assert_close(record, run.model.state_dict(), *alone(config))
    dist.barrier()


@both
def devices_normalize_a_batch_together():
    """Outputs, gradients and running statistics of two halves are those of the whole."""
    mine = slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)
    for gamma, shape in ((False, (8, 3)), (True, (8, 3, 2, 2))):
        alone = BatchNorm(3, gamma=gamma).double()
        shared = copy.deepcopy(alone)
        normalize_across(shared, Devices(torch.device("cpu"), dist.get_rank(), 2), 1)
        images = torch.randn(shape, dtype=torch.float64)
        weight = torch.randn(8, dtype=torch.float64)

        def passed(layer, share, images=images, weight=weight):
            here = images.clone().requires_grad_()
            output = layer(here[share])
            (output.flatten(1).pow(3).sum(1) * weight[share]).sum().backward()
            return output.detach(), here.grad, *(p.grad for p in layer.parameters())

        output, *grads = passed(alone, slice(None))
        half, *of_half = passed(shared, mine)
        torch.testing.assert_close(half, output[mine])
        for whole, grad in zip(grads, of_half, strict=True):
            dist.all_reduce(grad)
            torch.testing.assert_close(grad, whole)
        for whole, running in zip(alone.buffers(), shared.buffers(), strict=True):
            torch.testing.assert_close(running, whole)
        torch.testing.assert_close(shared.eval()(images), alone.eval()(images))


@both
def error_of_the_first_device_is_raised_on_all():
    """Before the next collective, in which the others would wait for it."""
    devices = Devices(torch.device("cpu"), dist.get_rank(), 2)
    with pytest.raises(ValueError, match="no such thing"):
        devices.from_first(lambda: int("no such thing"))
    config, store = tiny(epochs=1), Store(one_folder())
    with store.lock(config).acquire() if devices.first else contextlib.nullcontext():
        with pytest.raises(RunLocked, match="another process trains"):
            train(config, store=store, device="cpu")

    def full(self, *_, **__):
        raise OSError(28, "no space left")

    save, Checkpoints.save = Checkpoints.save, full
    with pytest.raises(OSError, match="no space left"):
        train(config, store=store, device="cpu")
    Checkpoints.save = save
    dist.barrier()


@both
def what_devices_cannot_share_is_refused():
    for config, options, message in (
        (tiny(accumulate=1, dropout=0.3, network="wrn-10-1"), {}, "would drop other values than one device"),
        (
            tiny(batch_size=33, train_size=None),
            {},
            "2 devices cannot share batches of batch_size=33 in accum",
        ),
        (tiny(accumulate=3, batch_size=33, train_size=None), {}, "let one of the two divide the other"),
        (tiny(), {"compile": True}, "compile is for one device, not 2"),
        (tiny(precision="float16"), {}, "2 devices would scale precision='float16' otherwise than one"),
    ):
        with pytest.raises(ValueError, match=message):
            train(config, device="cpu", **options)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return both.outcomes(tmp_path_factory.mktemp("devices"))


@pytest.mark.parametrize("name", both.found)
def test_two_processes(outcomes, name):
    ask(outcomes, name)


@pytest.mark.parametrize(("count", "parts"), [(1, 1), (1, 4), (2, 4), (4, 4), (4, 2), (8, 1)])
def test_every_piece_is_computed_by_one_device(count, parts):
    shares = [Devices(torch.device("cpu"), rank, count).pieces(parts) for rank in range(count)]
    (total,) = {total for _, total in shares}
    assert [piece for own, _ in shares for piece in own] == list(range(total))
    assert total % parts == 0


def test_one_process_has_nothing_to_shard():
    with pytest.raises(ValueError, match="shard=True cuts a network over several processes, and this is one"):
        train(tiny(), device="cpu", shard=True)


def torchrun(store, *words):
    fields = {"width": 0.25, "train_size": 192, "batch_size": 64, "epochs": 1, "lr": 0.02}
    fields["accumulate"] = 2
    given = [word for name, value in fields.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "riembn", "train", "--preset", "vgg-11/digits/sgd-g", "--device", "cpu"]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *given, "--store", str(store), *words],
        capture_output=True,
        text=True,
        timeout=120,
        env=quiet,
    )


def test_torchrun_trains_one_run(tmp_path):
    done = torchrun(tmp_path, "--shard")
    assert done.returncode == 0, done.stderr
    (record,) = Store(tmp_path).records()
    assert done.stdout.count(record.digest) == 1  # one process speaks
    config = tiny(epochs=1, accumulate=2, augment=False)
    assert record.digest == config.digest()
    assert record.columns["train_loss"] == pytest.approx(alone(config)[0].columns["train_loss"], rel=1e-3)


def test_one_process_that_fails_ends_all(tmp_path):
    store, config = Store(tmp_path), tiny(epochs=1, accumulate=2, augment=False)
    with store.lock(config).acquire():
        refused = torchrun(tmp_path)
    assert refused.returncode != 0
    assert "another process trains" in refused.stderr and not list(store.records())
