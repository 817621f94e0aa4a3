"""Laws that hold of every method in the table: a new one joins by being registered."""

import copy

import pytest
import torch
from torch import nn

import riembn
from riembn.experiment.config import acting
from riembn.training import train

ALL = sorted(riembn.methods)
each = pytest.mark.parametrize("method", ALL)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 16, 3),
    )  # fmt: skip


def batch(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(16, 2, 8, 8, generator=random), torch.randint(3, (16,), generator=random)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> list[float]:
    losses = []
    for k in range(count):
        x, y = batch(k % 2)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def made(method: str, model: nn.Module, **options) -> torch.optim.Optimizer:
    return riembn.build_optimizer(model, batch()[0], method, **options)


@each
def test_loss_falls_and_every_weight_moves(method):
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = made(method, model)
    losses = steps(model, optimizer, 30)
    assert all(torch.isfinite(torch.tensor(losses))) and sum(losses[-4:]) < sum(losses[:4])
    moved = {n for (n, p), b in zip(model.named_parameters(), before, strict=True) if not torch.equal(p, b)}
    # a bias in front of BatchNorm has no gradient to speak of
    assert moved >= {n for n, _ in model.named_parameters()} - {"0.bias", "3.bias"}


@each
def test_gradients_are_never_written_to(method):
    model = network()
    optimizer = made(method, model)
    steps(model, optimizer, 1)
    kept = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), kept, strict=True))


@each
def test_state_goes_through_a_checkpoint(method, tmp_path):
    model = network()
    optimizer = made(method, model)
    steps(model, optimizer, 3)
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "saved.pt")
    other = network(seed=5)
    again = made(method, other)
    weights, state = torch.load(tmp_path / "saved.pt", weights_only=False)
    other.load_state_dict(weights)
    again.load_state_dict(state)
    assert steps(model, optimizer, 3) == steps(other, again, 3)


@each
def test_rate_of_zero_moves_nothing(method):
    model = network()
    optimizer = made(method, model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in model.parameters()]
    steps(model, optimizer, 2)
    assert all(torch.allclose(p, b, atol=1e-6) for p, b in zip(model.parameters(), before, strict=True))


@each
def test_copies_go_their_own_way(method):
    model = network()
    optimizer = made(method, model)
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    assert steps(model, optimizer, 3) == steps(twin, twin_optimizer, 3)


# Of the others the next direction depends on the length of a row, which is what the book is about.
BY_LENGTH = {"sgd-split", "adam-srt", "adamp", "muon", "radial-brake", "sgdp"}
SCALE_FREE = [name for name in ALL if riembn.methods[name].kind == "rows" and name not in BY_LENGTH]


@pytest.mark.parametrize("method", SCALE_FREE)
def test_direction_does_not_depend_on_the_length_of_a_row(method):
    model, scaled = network(), network()
    with torch.no_grad():
        scaled[0].weight.mul_(4.0)
    for m in (model, scaled):
        for module in m.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-60
        m.double()
        optimizer = riembn.build_optimizer(m, batch()[0].double(), method)
        x, y = batch()
        nn.functional.cross_entropy(m(x.double()), y).backward()
        optimizer.step()
    rows = [nn.functional.normalize(m[0].weight.detach().flatten(1), dim=1) for m in (model, scaled)]
    assert torch.allclose(*rows, atol=1e-6)


@each
def test_configuration_trains(method):
    config = riembn.preset(f"vgg-11/digits/{method}", width=0.06, train_size=128, epochs=1)
    record = train(config, device="cpu")
    assert record.status == "finished" and riembn.Record.from_json(record.to_json()) == record
    assert {"lr"} | acting(riembn.methods[method], {}) <= {"lr", *config.as_dict()}
