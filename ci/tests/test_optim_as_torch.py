"""The optimizers keep what torch promises of its own: options, copies, hooks, `torch.compile`, memory, import time."""

import copy
import io
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.testing._internal.two_tensor import TwoTensor

import riembn
from riembn.optim import PSISGD, SGDG, AdamG, Combined
from riembn.optim.rows import lists

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.memory import peak_bytes, state_bytes  # noqa: E402

METHODS = {
    "sgd-g": (SGDG, dict(lr=0.2)),
    "adam-g": (AdamG, dict(lr=0.05)),
    "psi-sgd": (PSISGD, dict(lr=0.05, momentum=0.9)),
}
PATHS = {"loop": dict(foreach=False), "lists": dict(foreach=True), "fused": dict(fused=True)}
SHAPES = [(4, 6), (3, 2, 3, 3), (5, 4)]
compiled = any(map(shutil.which, ("cc", "gcc", "clang")))
methods = pytest.mark.parametrize("method", METHODS)
paths = pytest.mark.parametrize(
    "path", [pytest.param(p, marks=[] if p != "fused" or compiled else pytest.mark.skip) for p in PATHS]
)


def made(method, path, dtype=torch.float64, **options):
    optimizer_class, usual = METHODS[method]
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in SHAPES]
    return params, optimizer_class(params, **{**usual, **PATHS[path], **options})


def steps(params, optimizer, times, seed=1, sign=1.0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(times):
        for p in params:
            p.grad = (0.1 * sign * torch.randn(p.shape, generator=generator)).to(p.dtype)
        optimizer.step()


def assert_same(a, b, tolerance=0.0):
    (params, first), (others, second) = a, b
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)
        assert first.state[p].keys() == second.state[q].keys()
        for key, value in first.state[p].items():
            torch.testing.assert_close(value, second.state[q][key], rtol=tolerance, atol=tolerance)


@paths
@methods
def test_maximize_is_descent_along_the_negative_gradient(method, path):
    options = {} if method == "psi-sgd" else dict(alpha=0.1)
    up, down = made(method, path, maximize=True, **options), made(method, path, **options)
    steps(*up, 4)
    steps(*down, 4, sign=-1.0)
    for p, q in zip(up[0], down[0], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-14)


@paths
@methods
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_rate_in_a_tensor_is_followed_when_it_changes(method, path, shape):
    rate = METHODS[method][1]["lr"]
    number = made(method, path)
    tensor = made(method, path, lr=torch.full(shape, rate, dtype=torch.float64))
    for i in range(3):
        steps(*number, 1, seed=i)
        steps(*tensor, 1, seed=i)
        number[1].param_groups[0]["lr"] *= 0.5
        tensor[1].param_groups[0]["lr"].mul_(0.5)
    assert_same(number, tensor, 1e-13)


@methods
def test_sparse_gradients_are_refused_by_name(method):
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    optimizer = METHODS[method][0](embedding.parameters(), lr=0.1)
    embedding(torch.tensor([1, 2])).sum().backward()
    before = embedding.weight.detach().clone()
    with pytest.raises(RuntimeError, match=f"^{type(optimizer).__name__}: a sparse gradient.*sparse=False"):
        optimizer.step()
    assert torch.equal(embedding.weight, before)


@methods
def test_a_gradient_that_holds_other_tensors_is_refused(method):
    weight = torch.nn.Parameter(torch.randn(4, 6))
    optimizer = METHODS[method][0]([weight], lr=0.1)
    before, gradient = weight.detach().clone(), torch.randn(4, 6)
    weight.grad = TwoTensor(gradient, gradient)
    with pytest.raises(RuntimeError, match=f"^{type(optimizer).__name__}: a gradient of .*TwoTensor.* Parameter"):
        optimizer.step()
    assert torch.equal(weight, before)


@pytest.mark.parametrize("both", [True, False])
@methods
def test_a_weight_that_holds_other_tensors_moves_as_they_would(method, both):
    optimizer_class, _ = METHODS[method]
    values, gradient = torch.randn(2, 4, 6)
    plain, held = torch.nn.Parameter(values.clone()), torch.nn.Parameter(TwoTensor(values.clone(), values.clone()))
    optimizers = [optimizer_class([w], lr=0.1, foreach=True) for w in (plain, held)]
    plain.grad, held.grad = gradient, TwoTensor(gradient, gradient) if both else gradient
    for optimizer in optimizers:
        optimizer.step()
    assert torch.allclose(held.a, plain) and torch.equal(held.a, held.b)


@pytest.mark.parametrize("path", ["loop", "lists", "automatic"])
@methods
def test_a_mixed_group_moves_each_weight_as_if_alone(method, path):
    optimizer_class, usual = METHODS[method]
    usual = {**usual, **PATHS.get(path, {})}
    generator = torch.Generator().manual_seed(0)
    kinds = [
        (torch.float32, (4, 6)),
        (torch.float64, (3, 5)),
        (torch.bfloat16, (4, 8)),
        (torch.float32, (0, 3)),
    ]
    starts = [torch.randn(shape, generator=generator).to(dtype) for dtype, shape in kinds] + [
        torch.randn(2, 2)
    ]
    together, alone = ([torch.nn.Parameter(w.clone()) for w in starts] for _ in range(2))
    optimizers = [optimizer_class(together, **usual), *(optimizer_class([p], **usual) for p in alone)]
    still = together[-1].detach().clone()
    for _ in range(3):
        for p, q in zip(together[:-1], alone[:-1], strict=True):  # the last has no gradient
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, q, one in zip(together, alone, optimizers[1:], strict=True):
        assert torch.equal(p, q)
        assert all(torch.equal(v, one.state[q][k]) for k, v in optimizers[0].state[p].items())
    assert torch.equal(together[-1], still) and not optimizers[0].state[together[-1]]


@methods
def test_each_group_has_its_own_options(method):
    optimizer_class, usual = METHODS[method]
    start = torch.randn(3, 4)
    params = [torch.nn.Parameter(start.clone()) for _ in range(4)]
    groups = [
        dict(params=params[:1], lr=0.0),
        dict(params=params[1:2], maximize=True),
        dict(params=params[2:3], foreach=False),
    ]
    optimizer = optimizer_class(groups, **usual)
    optimizer.add_param_group(dict(params=params[3:]))
    first = [p.detach().clone() for p in params]
    grad = torch.randn(3, 4)
    for p in params:
        p.grad = grad.clone()
    optimizer.step()
    moved = [p.detach() - w for p, w in zip(params, first, strict=True)]
    assert moved[0].abs().max() < 1e-6 < moved[1].abs().max()
    assert (moved[1] * moved[3]).sum() < 0
    torch.testing.assert_close(moved[2], moved[3], rtol=1e-4, atol=1e-6)


def through_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.skipif(not compiled, reason="no C compiler on this machine")
@pytest.mark.parametrize("after", PATHS)
@pytest.mark.parametrize("before", PATHS)
@methods
def test_a_saved_optimizer_goes_on_in_any_path_as_if_never_saved(method, before, after):
    never = made(method, before)
    steps(*never, 3)
    params, optimizer = made(method, after)
    optimizer.load_state_dict(through_file(never[1].state_dict()))
    optimizer.param_groups[0].update({"foreach": None, "fused": None, **PATHS[after]})
    with torch.no_grad():
        for p, q in zip(params, never[0], strict=True):
            p.copy_(q)
    steps(params, optimizer, 5, seed=2)
    steps(*never, 5, seed=2)
    assert_same((params, optimizer), never, 0.0 if before == after else 1e-12)


@paths
@methods
def test_copies_go_on_alike_and_take_new_groups(method, path):
    original = made(method, path)
    steps(*original, 2)
    for copied in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        first = copy.deepcopy(original)
        for params, optimizer in (first, copied):
            params.append(torch.nn.Parameter(torch.full((2, 3), 0.5, dtype=torch.float64)))
            optimizer.add_param_group({"params": params[-1:]})
            steps(params, optimizer, 2, seed=3)
        assert_same(first, copied)


@methods
@pytest.mark.parametrize("other", METHODS)
def test_state_of_another_method_is_refused_and_changes_nothing(method, other):
    params, optimizer = made(method, "lists")
    steps(params, optimizer, 1)
    _, saved = made(other, "lists")
    rest = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    whole = Combined(made(method, "lists")[1], torch.optim.SGD(rest[:1], lr=0.1))
    saved_whole = Combined(made(other, "lists")[1], torch.optim.SGD(rest[1:], lr=0.1))
    if method == other:
        optimizer.load_state_dict(saved.state_dict())
        whole.load_state_dict(saved_whole.state_dict())
        return
    before = copy.deepcopy(optimizer.state_dict())
    for own, read in ((optimizer, saved), (whole, saved_whole)):
        names = METHODS[other][0].__name__, METHODS[method][0].__name__
        with pytest.raises(ValueError, match=f"saved by {names[0]} and cannot be loaded into {names[1]}; make"):
            own.load_state_dict(read.state_dict())
    assert str(before) == str(optimizer.state_dict())


@methods
def test_options_that_a_schedule_adds_to_every_group_are_no_other_method(method):
    def alone():
        return made(method, "lists")[1]

    def with_rest():
        return Combined(alone(), torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1))

    for make in (alone, with_rest):
        for extra in ("weight_decay", "nesterov", "steps", "eps", "lr_scale"):
            saved, other = make(), make()
            for group in saved.param_groups:
                group[extra] = 0.5
            other.load_state_dict(saved.state_dict())
            assert [group[extra] for group in other.param_groups] == [0.5] * len(other.param_groups)


RESTS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
}


@pytest.mark.parametrize("own, saved", [("SGD", "AdamW"), ("SGD", "Adam"), ("AdamW", "SGD"), ("Adam", "SGD")])
def test_state_of_another_rest_is_refused(own, saved):
    def whole(rest):
        return Combined(SGDG([torch.nn.Parameter(torch.ones(2, 3))]), RESTS[rest]([torch.nn.Parameter(torch.ones(3))]))

    with pytest.raises(ValueError, match=f"Combined: the state was saved by {saved} and cannot be loaded into {own};"):
        whole(own).load_state_dict(whole(saved).state_dict())


@pytest.mark.parametrize("rest", RESTS)
def test_options_that_an_older_torch_did_not_save_are_filled_in(rest):
    ends = []
    for older in (False, True):
        torch.manual_seed(0)
        weight, bias = torch.nn.Parameter(torch.randn(2, 3)), torch.nn.Parameter(torch.randn(3))
        optimizer = Combined(SGDG([weight]), RESTS[rest]([bias]))
        steps([weight, bias], optimizer, 1)
        saved = optimizer.state_dict()
        for name in ("decoupled_weight_decay", "maximize", "foreach", "fused", "capturable", "differentiable"):
            for group in saved["param_groups"] if older else ():
                if group["part"] == 1:
                    group.pop(name, None)
        optimizer.load_state_dict(saved)
        steps([weight, bias], optimizer, 2)
        ends.append(([weight, bias], optimizer))
    assert_same(*ends)


def test_a_rest_that_loses_its_momentum_is_refused():
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(ValueError, match="corrupts the momentum of 16-bit weights on a CPU; give it fused=False"):
            Combined(torch.optim.SGD([torch.nn.Parameter(torch.ones(3, dtype=dtype))], lr=0.1, fused=True))
    combined = Combined(torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1, fused=True))
    with pytest.raises(ValueError, match="corrupts the momentum of 16-bit weights on a CPU"):
        combined.add_param_group({"params": [torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))]})
    assert len(combined.param_groups) == len(combined.parts[0].param_groups) == 1
    half = torch.nn.Sequential(torch.nn.Linear(4, 8, bias=False), torch.nn.BatchNorm1d(8)).bfloat16()
    with pytest.raises(ValueError, match="build_optimizer: torch's fused SGD corrupts the momentum"):
        riembn.build_optimizer(half, torch.randn(8, 4), "sgd", fused=True)


@methods
def test_closure_runs_once_with_gradients_on_and_its_loss_comes_back(method):
    (p, *_), optimizer = made(method, "lists")
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).requires_grad and calls == [True]
    optimizer.zero_grad(set_to_none=False)
    assert p.grad is not None and not p.grad.any()
    optimizer.zero_grad()
    assert p.grad is None


def test_hooks_for_all_optimizers_fire_once():
    told = []
    weight, bias = torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.ones(3))
    part = SGDG([weight])
    plain = torch.optim.SGD([bias], lr=0.1)
    part.register_step_pre_hook(lambda *_: told.append("before the part"))
    plain.register_step_post_hook(lambda *_: told.append("after the part"))
    combined = Combined(part, plain)
    combined.register_state_dict_post_hook(lambda *_: told.append("saved"))
    handles = [
        register_optimizer_step_pre_hook(lambda optimizer, *_: told.append(type(optimizer).__name__)),
        register_optimizer_step_post_hook(lambda optimizer, *_: told.append(type(optimizer).__name__)),
    ]
    try:
        before = weight.detach().clone()
        steps([weight, bias], combined, 1)
        assert told == ["Combined", "before the part", "after the part", "Combined"]
        assert not torch.equal(weight, before) and not torch.equal(bias, torch.ones(3))
        told.clear()
        steps([weight], SGDG([weight]), 1)
        assert told == ["SGDG", "SGDG"]
    finally:
        for handle in handles:
            handle.remove()
    combined.state_dict()
    assert told[-1] == "saved"


def compiled_equals_eager(method, backend, **options):
    torch._dynamo.reset()
    counters.clear()
    rate = METHODS[method][1]["lr"]
    results = []
    for step_of in (lambda step: step, lambda step: torch.compile(step, backend=backend)):
        params, optimizer = made(method, "lists", torch.float32, lr=torch.tensor(rate), **options)
        optimizer.step, graphs = step_of(optimizer.step), []
        for i in range(5):
            steps(params, optimizer, 1, seed=i)
            optimizer.param_groups[0]["lr"].mul_(0.9)
            graphs.append(counters["stats"]["unique_graphs"])
        results.append((params, optimizer))
    assert_same(*results, 1e-6)
    assert not counters["graph_break"]
    assert graphs[0] > 0 and graphs[1:] == [2] * 4  # one that makes the state, one for every later step


@methods
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_compiled_step_equals_the_eager_one_and_is_compiled_once(method):
    compiled_equals_eager(method, "aot_eager", **({} if method == "psi-sgd" else dict(alpha=0.1)))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler on this machine")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_inductor_compiles_a_step():
    compiled_equals_eager("adam-g", "inductor")


@methods
def test_a_lost_row_leaves_the_weights_of_its_batch_alone(method):
    optimizer_class, usual = METHODS[method]
    chance = torch.Generator().manual_seed(0)
    drawn = [torch.randn(2, 8, 5, 3, 3, generator=chance) for _ in range(3)]
    drawn[1][1, 2, 0] = torch.inf

    def moved(*which: int) -> list[torch.Tensor]:
        params = [torch.nn.Parameter(drawn[i][0].clone()) for i in which]
        optimizer = optimizer_class(params, foreach=True, **usual)
        for p, i in zip(params, which, strict=True):
            p.grad = drawn[i][1].clone()
        for _ in range(3):
            optimizer.step()
        return [p.detach() for p in params]

    together = moved(0, 1, 2)
    for i in (0, 2):
        torch.testing.assert_close(together[i], *moved(i), rtol=1e-6, atol=1e-7)
    kept = together[1].flatten(1).isfinite().all(1)
    assert kept.tolist() == [row != 2 for row in range(8)]


@methods
def test_lists_on_a_cpu_take_the_memory_of_a_few_blocks(method):
    optimizer_class, usual = METHODS[method]
    params = [torch.nn.Parameter(torch.randn(1024, 8, 16, 16)) for _ in range(4)]
    optimizer = optimizer_class(params, foreach=True, **usual)
    steps(params, optimizer, 1)
    assert peak_bytes(optimizer.step, torch.device("cpu")) < 1.5 * 4 * lists.BLOCK
    weights = sum(p.numel() for p in params) * 4
    assert weights > 5 * 4 * lists.BLOCK
    rows = 4 * sum(len(p) for p in params) + 4 * len(params) if method == "adam-g" else 0
    assert state_bytes(optimizer) == weights + rows


@pytest.mark.parametrize("shape", [(600, 3000), (1, 2_000_000), (1_000_000, 4)])
@pytest.mark.parametrize("method", ["sgd-g", "adam-g"])
def test_lists_take_at_most_three_times_the_weights_whatever_their_shape(method, shape):
    optimizer_class, usual = METHODS[method]
    p = torch.nn.Parameter(torch.rand(shape) + 0.1)
    alpha = 0.1 if shape[0] == 600 else 0.0
    optimizer = optimizer_class([p], foreach=True, alpha=alpha, grad_clip=None, **usual)
    steps([p], optimizer, 1)
    assert peak_bytes(optimizer.step, torch.device("cpu")) <= 3 * 4 * p.numel()


def test_import_takes_little_more_than_torch(tmp_path):
    code = (
        "import sys, time; start = time.process_time(); import torch; torchs = time.process_time() - start; "
        f"sys.dont_write_bytecode, sys.pycache_prefix = False, {str(tmp_path)!r}; "  # the first run compiles
        "start = time.process_time(); import riembn; print((time.process_time() - start) / torchs)"
    )
    shares = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(4)]
    assert min(shares) < 0.1  # of the processor's time for torch, so whatever the machine is and does


@methods
@paths
def test_a_network_may_change_its_type_between_steps(method, path):
    params, optimizer = made(method, path, torch.float32)
    steps(params, optimizer, 3)
    for p in params:
        p.data, p.grad = p.data.double(), None  # as Module.double()
    wide, again = made(method, path)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, q in zip(params, wide, strict=True):
        q.data.copy_(p.data)
    steps(params, optimizer, 3)
    steps(wide, again, 3)
    assert_same((params, optimizer), (wide, again))
    assert all(
        t.dtype == torch.float64 for s in optimizer.state.values() for k, t in s.items() if k != "step"
    )


@methods
@paths
@pytest.mark.parametrize("key", ["momentum_buffer", "exp_avg", "exp_avg_sq"])
def test_state_that_does_not_fit_its_weight_is_refused_before_anything_moves(method, path, key):
    params, optimizer = made(method, path)
    steps(params, optimizer, 1)
    if key not in optimizer.state[params[1]]:
        return
    saved = optimizer.state_dict()
    saved["state"][1][key] = saved["state"][1][key][:1].clone()
    optimizer.load_state_dict(saved)
    before = [p.detach().clone() for p in params]
    with pytest.raises(
        ValueError, match=rf"state '{key}' of a weight of shape \(3, 2, 3, 3\) has shape \(1,"
    ) as e:
        steps(params, optimizer, 1)
    assert "\n" not in str(e.value)
    assert all(map(torch.equal, params, before))


def expanded(t):
    return t.flatten()[:1].reshape([1] * t.dim()).expand(t.shape)


def column(t):
    return torch.stack([t, t + 1], dim=-1)[..., 0]


def turned(t):
    return t.movedim(0, -1).contiguous().movedim(-1, 0)


def negative(t):
    """The same numbers as a view of their negatives."""
    return torch.view_as_complex(torch.stack([t, -t], dim=-1)).conj().imag


@pytest.mark.parametrize("view", [expanded, column, turned, negative])
@methods
@paths
def test_state_and_gradients_may_be_any_view(method, path, view):
    ends = []
    for plain in (False, True):
        params, optimizer = made(method, path)
        steps(params, optimizer, 1)
        saved = optimizer.state_dict()
        for state in saved["state"].values():
            for key in state.keys() - {"step"}:
                seen = view(state[key])
                state[key] = seen.resolve_neg().clone(memory_format=torch.contiguous_format) if plain else seen
        optimizer.load_state_dict(saved)
        generator = torch.Generator().manual_seed(2)
        for _ in range(2):
            for p in params:
                seen = view(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
                p.grad = seen.resolve_neg().clone(memory_format=torch.contiguous_format) if plain else seen
            optimizer.step()
        ends.append((params, optimizer))
    assert_same(*ends, 1e-14)  # sums over a row in another order


@methods
def test_a_weight_may_have_gaps_and_may_be_no_view_of_its_negative(method):
    start = torch.randn(4, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match="is a view of its negative; give parameter.resolve_neg()"):
        METHODS[method][0]([torch.nn.Parameter(negative(start))], **METHODS[method][1])
    weights = [torch.nn.Parameter(column(start.clone())), torch.nn.Parameter(start.clone())]
    optimizers = [METHODS[method][0]([w], **METHODS[method][1]) for w in weights]
    for w, optimizer in zip(weights, optimizers, strict=True):
        steps([w], optimizer, 3)
    torch.testing.assert_close(*weights, rtol=1e-12, atol=1e-12)


@methods
@paths
def test_a_row_that_is_set_to_zero_stays_so_and_leaves_the_others_alone(method, path):
    ends = []
    for lost in (True, False):
        params, optimizer = made(method, path, alpha=0.1) if method != "psi-sgd" else made(method, path)
        steps(params, optimizer, 2)
        if lost:
            with torch.no_grad():
                lost_rows = [params[1][2], params[2]]
                if method == "psi-sgd":  # which goes on by its momentum
                    moments = [optimizer.state[p]["momentum_buffer"] for p in params[1:]]
                    lost_rows += [moments[0][2], moments[1]]
                torch._foreach_zero_(lost_rows)
        if method != "psi-sgd":
            optimizer.param_groups[0]["alpha"] = 0.0  # compares rows
        steps(params, optimizer, 3, seed=2)
        ends.append((params, optimizer))
    (params, optimizer), (others, twin) = ends
    assert not params[1][2].any() and not params[2].any()
    assert all(t.isfinite().all() for state in optimizer.state.values() for t in state.values())
    moment = "exp_avg" if method == "adam-g" else "momentum_buffer"
    close = dict(rtol=1e-12, atol=1e-12)
    for p, q in zip(params[:2], others[:2], strict=True):
        rows = slice(0, 4 if p is params[0] else 2)
        torch.testing.assert_close(p[rows], q[rows], **close)
        torch.testing.assert_close(optimizer.state[p][moment][rows], twin.state[q][moment][rows], **close)
    if method != "psi-sgd":
        optimizer.param_groups[0]["alpha"] = 0.1
        steps(params, optimizer, 1)
        assert not params[1][2].any() and all(p.isfinite().all() for p in params)


@methods
@paths
def test_a_step_between_forward_and_backward_is_noticed(method, path):
    params, optimizer = made(method, path)
    steps(params, optimizer, 1)
    loss = params[0].square().sum()
    state = [t for s in optimizer.state.values() for k, t in s.items() if k != "step"]
    versions = [t._version for t in (*params, *state)]
    steps(params, optimizer, 1)
    assert all(t._version > v for t, v in zip((*params, *state), versions, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@methods
def test_a_gradient_left_behind_by_its_weight_is_refused(method):
    params, optimizer = made(method, "fused" if compiled else "lists")
    params[0].grad = torch.zeros_like(params[0])
    params[0].data = torch.ones(40, 60, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"shape \(4, 6\) on cpu.*weight of shape \(40, 60\).*None"):
        optimizer.step()
