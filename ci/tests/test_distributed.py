"""Two processes that share the rows of a network do what one process does with all of them."""

import copy
import functools

import pytest
import torch
import torch.distributed as dist
from pair import WORLD, Checks, ask
from torch import nn
from torch.nn import functional

import riembn
from riembn.optim import PSISGD, SGDG, AdamG

pytestmark = pytest.mark.xdist_group("distributed")  # one pair of processes at a time
METHODS = {
    "sgd-g": (SGDG, dict(lr=0.2)),
    "adam-g": (AdamG, dict(lr=0.05)),
    "psi-sgd": (PSISGD, dict(lr=0.05, momentum=0.9)),
}
# Shape and layout: halves, uneven parts, an empty part, a convolution; then GroupNorm blocks that the cut
# respects and blocks that it divides, one row for the tensor, a grouped transposed convolution.
WHOLE_ROWS = [
    ((6, 5), {}),
    ((5, 7), {}),
    ((1, 4), {}),
    ((3, 2, 3, 3), {}),
    ((12, 4), {"channels_per_row": 3}),
]
CUT_ROWS = [
    ((6, 4), {"channels_per_row": 2}),
    ((3, 2, 2), {"channels_per_row": None}),
    ((6, 4, 3, 3), {"row_dim": 1, "conv_groups": 2}),
]
# Weights, each followed by its bias.
JOINT_ROWS = [
    ((5, 3), {}),
    ((5,), {}),
    ((1, 2), {}),
    ((1,), {}),
    ((6, 4), {"channels_per_row": 2}),
    ((6,), {}),
    ((6, 4, 3), {"row_dim": 1, "conv_groups": 2}),
    ((8,), {}),
]

both = Checks()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return both.outcomes(tmp_path_factory.mktemp("distributed"))


def mesh():
    return dist.device_mesh.init_device_mesh("cpu", (WORLD,))


def spread(t, placement):
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(t, mesh(), [placement])


def whole(t):
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def assert_same(got, expected, tolerance=1e-12):
    torch.testing.assert_close(whole(got.detach()), expected.detach(), rtol=tolerance, atol=tolerance)


def steps_on_sharded_weights(weights, placement, method, joint=False, **changes):
    """Five steps on sharded weights and on plain ones: equal weights, equal state."""
    optimizer_class, options = METHODS[method]
    values = [torch.randn(shape, dtype=torch.float64) for shape, _ in weights]
    plain = [nn.Parameter(v.clone()) for v in values]
    shared = [nn.Parameter(spread(v.clone(), placement)) for v in values]

    def made(params):
        step = 2 if joint else 1
        groups = [
            {"params": params[i : i + step], "joint": joint, **weights[i][1]}
            for i in range(0, len(params), step)
        ]
        return optimizer_class(groups, **{**options, **changes})

    optimizers = made(plain), made(shared)
    for _ in range(5):
        for p, q in zip(plain, shared, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = spread(p.grad.clone(), placement)
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(plain, shared, strict=True):
        assert_same(q, p)
        state, expected = optimizers[1].state[q], optimizers[0].state[p]
        assert state.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(state[key], value)
    return optimizers[1]


@both
def each_device_moves_its_own_rows():
    from torch.distributed.tensor import Shard

    for method in METHODS:
        for foreach in (None, True, False):
            optimizer = steps_on_sharded_weights(WHOLE_ROWS, Shard(0), method, foreach=foreach)
            for p, state in optimizer.state.items():
                for key in state.keys() - {"step"}:  # state is cut as the weight is
                    assert state[key].placements == p.placements
                    rows, rows_here = len(state[key]), len(state[key].to_local())
                    assert rows_here * len(p) == rows * len(p.to_local())


@both
def a_step_is_noticed_and_writes_no_gradient():
    from torch.distributed.tensor import Shard

    for method in METHODS:
        for weights in (WHOLE_ROWS, CUT_ROWS):
            optimizer_class, options = METHODS[method]
            shape, layout = weights[0]
            p = nn.Parameter(spread(torch.randn(shape, dtype=torch.float64), Shard(0)))
            optimizer = optimizer_class([{"params": [p], **layout}], **options)
            p.grad = spread(torch.randn(shape, dtype=torch.float64), Shard(0))
            versions = p._version, p.grad.to_local()._version
            optimizer.step()
            assert p._version > versions[0] and p.grad.to_local()._version == versions[1]


@both
def whole_state_beside_a_weight_in_parts_is_refused():
    from torch.distributed.tensor import Shard

    for method, key in (("sgd-g", "momentum_buffer"), ("adam-g", "exp_avg"), ("adam-g", "exp_avg_sq")):
        optimizer = steps_on_sharded_weights(WHOLE_ROWS[:1], Shard(0), method)
        ((p, state),) = optimizer.state.items()
        state[key] = whole(state[key])
        with pytest.raises(ValueError, match=rf"state '{key}' .*whole, but must have .*in parts \(a DTensor\)"):
            optimizer.step()


@both
def regularizer_compares_rows_of_all_devices():
    from torch.distributed.tensor import Shard

    for method in ("sgd-g", "adam-g"):
        for foreach in (None, False):
            steps_on_sharded_weights(WHOLE_ROWS, Shard(0), method, foreach=foreach, alpha=0.3)


@both
def cut_rows_move_as_whole_ones():
    from torch.distributed.tensor import Shard

    for method in METHODS:
        steps_on_sharded_weights(CUT_ROWS, Shard(0), method)
        steps_on_sharded_weights(WHOLE_ROWS, Shard(1), method)
    steps_on_sharded_weights(CUT_ROWS, Shard(0), "sgd-g", alpha=0.3)


@both
def weight_and_bias_move_as_one_vector():
    from torch.distributed.tensor import Replicate, Shard

    for method in METHODS:
        for placement in (Shard(0), Replicate()):
            steps_on_sharded_weights(JOINT_ROWS, placement, method, joint=True)
    steps_on_sharded_weights(JOINT_ROWS, Shard(0), "adam-g", joint=True, alpha=0.3)


@both
def replicated_weights_move_alike():
    from torch.distributed.tensor import Replicate

    for method in METHODS:
        steps_on_sharded_weights(WHOLE_ROWS + CUT_ROWS, Replicate(), method)


@both
def partial_gradients_are_summed():
    from torch.distributed.tensor import DTensor, Partial, Shard

    value, grad = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    plain, shared = nn.Parameter(value.clone()), nn.Parameter(spread(value, Shard(0)))
    plain.grad, shared.grad = 2 * grad, DTensor.from_local(grad, mesh(), [Partial()])
    for p in (plain, shared):
        SGDG([p]).step()
    assert_same(shared, plain)


@both
def zero_row_is_refused_by_all_devices():
    from torch.distributed.tensor import Shard

    value = torch.randn(5, 3)
    value[4] = 0
    p = nn.Parameter(spread(value, Shard(0)))
    with pytest.raises(ValueError, match="SGDG: row 4 of parameter number 0"):
        SGDG([p])
    assert_same(p, value)


class Network(nn.Module):
    """Whole rows, cut rows, and normalization whose statistics are those of one image."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.GroupNorm(5, 5), nn.ReLU())
        self.second = nn.Sequential(nn.ConvTranspose2d(5, 4, 3, bias=False), nn.GroupNorm(2, 4), nn.ReLU())
        self.last = nn.Linear(4, 3)

    def forward(self, images):
        return self.last(self.second(self.first(images)).mean((2, 3)))


def images_and_labels():
    return torch.randn(8, 3, 6, 6, dtype=torch.float64), torch.randint(3, (8,))


@functools.cache
def measured():
    """The network, and which of its weights are on the manifold."""
    torch.manual_seed(3)
    model = Network().double()
    found = riembn.split(model, images_and_labels()[0])
    assert [name for name, _ in found.invariant] == ["first.0.weight", "second.0.weight"]
    return model, found


def built(method, wrap, foreach=None):
    """A copy of the network, wrapped, and an optimizer on the parameters that this leaves."""
    model, found = measured()
    inner = copy.deepcopy(model)
    outer = wrap(inner)
    return outer, inner, riembn.build_optimizer(inner, found, method, alpha=0.1, foreach=foreach)


def sharded(model):
    from torch.distributed.fsdp import fully_shard

    for part in (model.first, model.second):
        fully_shard(part, mesh=mesh())
    return fully_shard(model, mesh=mesh())


def data_parallel(model):
    return nn.parallel.DistributedDataParallel(model)


def train(model, optimizer, steps, share, seed=5):
    """Steps on the same global batches; each process computes its share of them."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        images = torch.randn(8, 3, 6, 6, generator=generator, dtype=torch.float64)
        labels = torch.randint(3, (8,), generator=generator)
        optimizer.zero_grad()
        functional.cross_entropy(model(images[share]), labels[share]).backward()
        optimizer.step()


def own_share():
    return slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)


def trained_alone(method, steps, foreach=None):
    model, _, optimizer = built(method, lambda model: model, foreach)
    train(model, optimizer, steps, slice(None))
    return model, optimizer


def assert_same_network(inner, expected, tolerance=1e-11):
    for (name, p), q in zip(inner.named_parameters(), expected.parameters(), strict=True):
        assert whole(p).shape == q.shape, name
        assert_same(p, q, tolerance)


@both
def two_devices_train_as_one():
    for wrap in (data_parallel, sharded):
        for method in ("sgd-g", "adam-g"):
            outer, inner, optimizer = built(method, wrap)
            train(outer, optimizer, 6, own_share())
            assert_same_network(inner, trained_alone(method, 6)[0])


@both
def network_in_parts_is_refused_by_split():
    with pytest.raises(ValueError, match="split: 'first.0.weight' lies in parts on several devices"):
        riembn.split(sharded(Network()), torch.randn(4, 3, 6, 6))


@both
def state_is_saved_and_loaded_by_name():
    """From any of one process, DDP and FSDP to any other, through torch.distributed.checkpoint."""
    from torch.distributed.checkpoint import state_dict as by_name

    options = by_name.StateDictOptions(full_state_dict=True)
    wraps = {"alone": lambda model: model, "ddp": data_parallel, "fsdp": sharded}
    for source, target in (("alone", "fsdp"), ("fsdp", "alone"), ("ddp", "fsdp"), ("fsdp", "ddp")):
        model, _, optimizer = built("adam-g", wraps[source])
        train(model, optimizer, 2, slice(None) if source == "alone" else own_share(), seed=5)
        first, saved = (model, optimizer), by_name.get_state_dict(model, optimizer, options=options)
        saved = copy.deepcopy(saved)
        assert "first.0.weight" in saved[1]["state"]

        def loaded(wrap, saved):
            outer, inner, optimizer = built("adam-g", wrap)
            copied = copy.deepcopy(saved)  # torch cuts the tensors of what it is given
            by_name.set_state_dict(
                outer,
                optimizer,
                model_state_dict=copied[0],
                optim_state_dict=copied[1],
                options=options,
            )
            return outer, inner, optimizer

        model, inner, optimizer = loaded(wraps[target], saved)
        again, _, other = loaded(wraps["alone"], saved)
        train(model, optimizer, 2, slice(None) if target == "alone" else own_share(), seed=6)
        train(again, other, 2, slice(None), seed=6)
        train(*first, 2, slice(None) if source == "alone" else own_share(), seed=6)
        assert_same_network(inner, again)
        for p, q in zip(first[0].parameters(), again.parameters(), strict=True):
            assert_same(p, q, 1e-11)


@both
def sharded_checkpoint_goes_on_where_it_was():
    """Each device writes and reads its own part, in the files of torch.distributed.checkpoint."""
    import tempfile

    from torch.distributed import checkpoint
    from torch.distributed.checkpoint import state_dict as by_name

    folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder)
    for method in ("sgd-g", "adam-g"):
        model, inner, optimizer = built(method, sharded)
        train(model, optimizer, 2, own_share())
        parts = by_name.get_state_dict(model, optimizer)
        checkpoint.save({"model": parts[0], "optimizer": parts[1]}, checkpoint_id=f"{folder[0]}/{method}")
        train(model, optimizer, 2, own_share(), seed=6)

        again, its_inner, other = built(method, sharded)
        parts = by_name.get_state_dict(again, other)
        state = {"model": parts[0], "optimizer": parts[1]}
        checkpoint.load(state, checkpoint_id=f"{folder[0]}/{method}")
        by_name.set_state_dict(
            again, other, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )
        train(again, other, 2, own_share(), seed=6)
        for p, q in zip(its_inner.parameters(), inner.parameters(), strict=True):
            assert torch.equal(p.to_local(), q.to_local())


@both
def flat_shards_are_refused_with_the_way_out():
    """Of the first FullyShardedDataParallel, whichever way they come in."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    for own_shapes in (True, False):
        model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
        x = torch.randn(8, 8)
        found = riembn.split(model, x)
        flat = FullyShardedDataParallel(model, use_orig_params=own_shapes, device_id=torch.device("cpu"))
        refused = [
            (riembn.split, flat, x),
            (riembn.split, nn.Sequential(flat), x),
            (riembn.build_optimizer, flat, found, "sgd-g"),
        ]
        pieces = [p for p in flat.parameters() if p.numel()]
        for method in riembn.methods.values():
            if method.kind == "rows" and method.optimizer is not torch.optim.SGD:
                refused.append((method.optimizer, pieces[:1], 0.1))
                refused.append((method.optimizer, [{"params": pieces[:1], "joint": True}], 0.1))
        if own_shapes:
            refused.append((riembn.build_optimizer, flat.module, found, "sgd-g"))
        for call, *words in refused:
            with pytest.raises(ValueError, match="flat pieces .*fully_shard instead, measure the network before"):
                call(*words)


@pytest.mark.parametrize("name", both.found)
def test_two_processes(outcomes, name):
    ask(outcomes, name)
