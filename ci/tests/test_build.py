"""One optimizer object over a whole network works wherever torch's own do."""

import copy
import io
import logging
import pickle
from typing import get_args

import pytest
import torch
from torch import nn

import riembn
from riembn.optim import PSISGD, SGDG, AdamG, Combined

MANIFOLD_METHODS = ["sgd-g", "adam-g", "psi-sgd"]
METHODS = ["sgd", *MANIFOLD_METHODS]


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 3),
    )


def example(seed=1, count=16):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 8, 8, generator=generator), torch.randint(
        0, 3, (count,), generator=generator
    )


def made(method, seed=0, **options):
    model = network(seed)
    return model, riembn.build_optimizer(model, example()[0], method, **options)


def one_step(model, optimizer, seed):
    x, target = example(seed)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), target)
    loss.backward()
    optimizer.step()
    return loss.item()


def states(optimizer):
    return [
        {k: v for k, v in optimizer.state[p].items()} for g in optimizer.param_groups for p in g["params"]
    ]


def assert_same(a, b):
    (model_a, optimizer_a), (model_b, optimizer_b) = a, b
    for p, q in zip(model_a.parameters(), model_b.parameters(), strict=True):
        assert torch.equal(p, q)
    for s, t in zip(states(optimizer_a), states(optimizer_b), strict=True):
        assert s.keys() == t.keys()
        for key in s:
            assert torch.equal(torch.as_tensor(s[key]), torch.as_tensor(t[key]))


def test_parameters_go_where_they_belong():
    for method, kind in (("sgd-g", SGDG), ("adam-g", AdamG), ("psi-sgd", PSISGD)):
        model, optimizer = made(method)
        manifold, rest = optimizer.parts
        assert isinstance(optimizer, torch.optim.Optimizer)
        assert isinstance(manifold, kind) and isinstance(rest, torch.optim.SGD)
        on_manifold = [p for g in manifold.param_groups for p in g["params"]]
        assert {id(p) for p in on_manifold} == {id(model[0].weight), id(model[3].weight)}
        decayed = {id(p): g["weight_decay"] for g in rest.param_groups for p in g["params"]}
        assert decayed.pop(id(model[7].weight)) == 5e-4 and set(decayed.values()) == {0.0}
        assert len(on_manifold) + len(decayed) + 1 == len(list(model.parameters()))
        assert all(g["nesterov"] and g["momentum"] == 0.9 and g["lr"] == 0.1 for g in rest.param_groups)
    model, optimizer = made("sgd")
    assert type(optimizer) is torch.optim.SGD and optimizer.param_groups[0]["weight_decay"] == 5e-4


@pytest.mark.parametrize("method", METHODS)
def test_every_option_reaches_the_groups(method):
    given = {
        "sgd": dict(lr=0.3, momentum=0.5, nesterov=False, weight_decay=0.1),
        "sgd-g": dict(lr=0.3, momentum=0.5, grad_clip=None, alpha=0.2, foreach=False),
        "adam-g": dict(lr=0.3, betas=(0.5, 0.6), eps=1e-4, grad_clip=0.7, alpha=0.2, foreach=False),
        "psi-sgd": dict(lr=0.3, momentum=0.5, foreach=False),
    }[method]
    rest = {} if method == "sgd" else dict(rest_lr=0.7, rest_momentum=0.0, rest_weight_decay=0.2)
    _, optimizer = made(method, **given, **rest)
    group = optimizer.param_groups[0]
    assert {name: group[name] for name in given} == given
    if rest:
        assert [g["lr"] for g in optimizer.param_groups[1:]] == [0.7, 0.7]
        assert [g["weight_decay"] for g in optimizer.param_groups[1:]] == [0.2, 0.0]
        assert optimizer.param_groups[1]["momentum"] == 0 and not optimizer.param_groups[1]["nesterov"]


@pytest.mark.parametrize("method", METHODS)
def test_loss_falls_and_a_combined_step_is_the_parts_steps(method):
    model, optimizer = made(method)
    start = [p.detach().clone() for p in model.parameters()]
    losses = [one_step(model, optimizer, 1) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), start, strict=True))
    if method == "sgd":
        return
    twin = network()
    combined = riembn.build_optimizer(twin, example()[0], method)
    for _ in range(30):
        nn.functional.cross_entropy(twin(example(1)[0]), example(1)[1]).backward()
        for part in combined.parts:
            part.step()
            part.zero_grad()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_rest_parameters_move_exactly_as_under_torch_sgd():
    model, optimizer = made("sgd-g")
    twin = copy.deepcopy(model)
    plain = torch.optim.SGD(twin[7].parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0)
    plain.param_groups[0]["params"] = [twin[7].weight]
    plain.param_groups[0]["weight_decay"] = 5e-4
    for _ in range(3):
        grad = torch.randn_like(model[7].weight)
        model[7].weight.grad, twin[7].weight.grad = grad.clone(), grad.clone()
        optimizer.step()
        plain.step()
    assert torch.equal(model[7].weight, twin[7].weight)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("through_file", [False, True])
def test_state_dict_round_trip(method, through_file):
    a = made(method)
    for seed in range(3):
        one_step(*a, seed)
    saved = {"model": a[0].state_dict(), "optimizer": a[1].state_dict()}
    if through_file:
        buffer = io.BytesIO()
        torch.save(saved, buffer)
        buffer.seek(0)
        saved = torch.load(buffer, weights_only=True)
    saved = copy.deepcopy(saved)
    b = made(method, seed=5)
    b[0].load_state_dict(saved["model"])
    b[1].load_state_dict(saved["optimizer"])
    for seed in range(3, 6):
        assert one_step(*a, seed) == one_step(*b, seed)
    assert_same(a, b)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_are_independent_and_go_on_alike(method, how):
    a = made(method)
    one_step(*a, 0)
    b = copy.deepcopy(a) if how == "deepcopy" else pickle.loads(pickle.dumps(a))
    before = [p.detach().clone() for p in b[0].parameters()]
    one_step(*a, 1)
    assert all(torch.equal(p, q) for p, q in zip(b[0].parameters(), before, strict=True))
    one_step(*b, 1)
    one_step(*a, 2)
    one_step(*b, 2)
    assert_same(a, b)
    assert repr(b[1]) == repr(a[1])


@pytest.mark.parametrize("method", METHODS)
def test_multi_step_schedule_multiplies_every_rate(method):
    model, optimizer = made(method)
    before = [g["lr"] for g in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2], gamma=0.2)
    for seed in range(2):
        one_step(model, optimizer, seed)
        schedule.step()
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.04 * lr for lr in before])
    assert schedule.get_last_lr() == [g["lr"] for g in optimizer.param_groups]


@pytest.mark.parametrize("method", METHODS)
def test_one_cycle_schedule_runs_and_reaches_its_peak(method):
    model, optimizer = made(method)
    peaks = [2 * g["lr"] for g in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=10, pct_start=0.5)
    seen = []
    for seed in range(9):
        one_step(model, optimizer, seed)
        schedule.step()
        seen.append(
            ([g["lr"] for g in optimizer.param_groups], [g.get("momentum") for g in optimizer.param_groups])
        )
    assert [max(rates) for rates in zip(*(s[0] for s in seen), strict=True)] == pytest.approx(peaks)
    assert min(s[1][-1] for s in seen) == pytest.approx(0.85)
    if method == "adam-g":
        assert optimizer.param_groups[0]["betas"] == (0.9, 0.99)


@pytest.mark.parametrize("method", METHODS)
def test_grad_scaler_skips_what_overflows_and_unscales_the_rest(method):
    a, b = made(method), made(method)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for seed in range(2):
        one_step(*a, seed)
        x, target = example(seed)
        b[1].zero_grad()
        scaler.scale(nn.functional.cross_entropy(b[0](x), target)).backward()
        scaler.step(b[1])
        scaler.update()
    for p, q in zip(a[0].parameters(), b[0].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    before = [p.detach().clone() for p in b[0].parameters()]
    for p in b[0].parameters():
        p.grad = torch.full_like(p, float("inf"))
    scaler.scale(torch.zeros(()))
    scaler.step(b[1])
    scaler.update()
    assert all(torch.equal(p, q) for p, q in zip(b[0].parameters(), before, strict=True))
    assert scaler.get_scale() == 512


@pytest.mark.parametrize("method", METHODS)
def test_closure_runs_once_with_gradients_on(method):
    model, optimizer = made(method)
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        x, target = example()
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True] and loss.item() > 0


@pytest.mark.parametrize("method", METHODS)
def test_zero_grad_sets_to_none_or_zero(method):
    model, optimizer = made(method)
    one_step(model, optimizer, 0)
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()  # nothing has a gradient: nothing moves
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("method", MANIFOLD_METHODS)
def test_groups_can_be_added_to_either_part(method):
    model, optimizer = made(method)
    one_step(model, optimizer, 0)
    weight, bias = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(5))
    optimizer.add_param_group({"params": [weight], "part": 0, "lr": 0.05})
    optimizer.add_param_group({"params": bias})
    assert optimizer.param_groups[-2]["channels_per_row"] == 1
    assert optimizer.param_groups[-1]["part"] == 1 and optimizer.param_groups[-1]["lr"] == 0.1
    if method != "psi-sgd":
        torch.testing.assert_close(weight.detach().norm(dim=1), torch.ones(4))
    before = weight.detach().clone(), bias.detach().clone()
    weight.grad, bias.grad = torch.randn(4, 5), torch.randn(5)
    optimizer.step()
    assert not torch.equal(weight, before[0]) and not torch.equal(bias, before[1])
    restored = copy.deepcopy(optimizer)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    count = len(optimizer.param_groups)
    for group, message in (
        ({"params": [nn.Parameter(torch.randn(3))], "part": 0}, "two or more dimensions"),
        ({"params": [weight]}, "already in another group"),
        ({"params": [nn.Parameter(torch.randn(3, 3))], "part": 2}, "parts are 0 to 1"),
        ({"params": [("again", weight)]}, "already in another group"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer.add_param_group(group)
        assert len(optimizer.param_groups) == count


@pytest.mark.parametrize("method", MANIFOLD_METHODS)
def test_state_dict_says_whose_state_it_is(method):
    def rest(groups):  # which drops names
        return torch.optim.AdamW([p for group in groups for p in group["params"]])

    for options in ({}, {"layer_lr": {"0.*": 0.5}}, {"rest": rest}):
        model, optimizer = made(method, **options)
        one_step(model, optimizer, 0)
        saved = optimizer.state_dict()
        parameters = dict(model.named_parameters())
        named = {n: i for g in saved["param_groups"] for n, i in zip(g["param_names"], g["params"], strict=True)}
        assert named.keys() == parameters.keys()
        for name, i in named.items():
            assert all(saved["state"][i][key] is value for key, value in optimizer.state[parameters[name]].items())
        # A group is added as before, with names or without, and what was saved without any is loaded.
        weight, bias, scale = (nn.Parameter(torch.randn(*shape)) for shape in ((4, 5), (4,), (4,)))
        optimizer.add_param_group({"params": [("head.weight", weight)], "part": 0})
        optimizer.add_param_group({"params": [bias, scale]})
        count = len(parameters) + 1
        assert [g["param_names"] for g in optimizer.param_groups[-2:]] == [
            ["head.weight"],
            [f"unnamed.{count}", f"unnamed.{count + 1}"],
        ]
        older = optimizer.state_dict()
        for group in older["param_groups"]:
            del group["param_names"]
        optimizer.load_state_dict(older)
        assert optimizer.param_groups[-2]["param_names"] == ["head.weight"]


def test_added_parameters_have_their_names():
    model, optimizer = made("sgd-g")
    model.add_module("head", nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    riembn.add_parameters(optimizer, model, example()[0])
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_a_group_without_order_is_refused_as_by_torch():
    _, optimizer = made("sgd-g")
    for group, message in (
        ([good()], "Combined: a param group must be a dict, but got list"),
        ({"params": {good()}}, "Combined: the order of a set differs from run to run"),
    ):
        with pytest.raises(TypeError):
            torch.optim.SGD([good()]).add_param_group(group)
        with pytest.raises(TypeError, match=message):
            optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == sum(len(part.param_groups) for part in optimizer.parts) == 3


def test_a_weight_without_direction_is_named():
    model = network()
    with torch.no_grad():
        model[0].weight[1] = 0
    with pytest.raises(ValueError, match="row 1 of parameter '0.weight'"):
        riembn.build_optimizer(model, riembn.split(network(), example()[0]), "sgd-g")


def test_one_cycle_cycles_betas_where_no_part_has_a_momentum():
    _, optimizer = made("adam-g", rest="adamw")
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
    assert {group["betas"][0] for group in optimizer.param_groups} == {0.95}
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        schedule.step()
    assert max(group["betas"][0] for group in optimizer.param_groups) < 0.95
    assert [group["betas"][1] for group in optimizer.param_groups] == [0.99, 0.999, 0.999]


def test_sgd_takes_the_options_of_torchs():
    for given in (
        dict(momentum=0.0),
        dict(dampening=0.5),
        dict(maximize=True, differentiable=False),
        dict(fused=True),
    ):
        _, optimizer = made("sgd", **given)
        group = optimizer.param_groups[0]
        assert {name: group[name] for name in given} == given
        assert group["nesterov"] == (group["momentum"] > 0 and group["dampening"] == 0)


@pytest.mark.parametrize("method", MANIFOLD_METHODS)
def test_every_parameter_takes_the_same_kind_of_step(method):
    for rest in ("sgd", "adam", "adamw"):
        for given in (dict(fused=False), dict(foreach=True), dict(foreach=False, maximize=True)):
            _, optimizer = made(method, rest=rest, **given)
            for group in optimizer.param_groups:
                assert {name: group[name] for name in given} == given
    model, optimizer = made(method, maximize=True)
    losses = [one_step(model, optimizer, 1) for _ in range(10)]
    assert losses[-1] > losses[0]


@pytest.mark.parametrize("combined", [False, True])
def test_hooks_of_loading_change_what_is_loaded(combined):
    def made_of(seed):
        torch.manual_seed(seed)
        p = nn.Parameter(torch.randn(3, 4).bfloat16())
        optimizer = SGDG([p])
        p.grad = torch.ones_like(p)
        return p, Combined(optimizer) if combined else optimizer

    p, saved = made_of(0)
    saved.step()
    q, optimizer = made_of(1)
    expected = saved.state[p]["momentum_buffer"] / 3
    seen = []

    def smaller(_, state_dict):
        state_dict = copy.deepcopy(state_dict)
        state_dict["state"][0]["momentum_buffer"] /= 3
        return state_dict

    optimizer.register_load_state_dict_pre_hook(smaller)
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(o.state[q]["momentum_buffer"].clone()))
    for _ in range(2):
        optimizer.load_state_dict(saved.state_dict())
        assert torch.equal(optimizer.state[q]["momentum_buffer"], expected)
    assert len(seen) == 2 and all(torch.equal(t, expected) for t in seen)


def test_step_hooks_fire_once():
    model, optimizer = made("sgd-g")
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    one_step(model, optimizer, 0)
    assert calls == ["pre", "post"]


@pytest.mark.parametrize("rest, kind", [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_rest_goes_to_the_optimizer_named(rest, kind):
    model, optimizer = made("sgd-g", rest=rest, rest_lr=1e-3)
    assert type(optimizer.parts[1]) is kind
    losses = [one_step(model, optimizer, 1) for _ in range(20)]
    assert losses[-1] < losses[0]
    _, custom = made("sgd-g", rest=lambda groups: torch.optim.RMSprop(groups, lr=1e-3))
    assert type(custom.parts[1]) is torch.optim.RMSprop


@pytest.mark.parametrize("method", ["sgd-g", "adam-g"])
def test_network_function_is_unchanged_by_construction(method):
    model = network().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-300  # torch refuses zero
    x = example()[0].double()
    before = model(x)
    riembn.build_optimizer(model, x, method)
    torch.testing.assert_close(model(x), before, rtol=1e-10, atol=1e-10)


BAD_CALLS = [
    (dict(method="sgdg"), ValueError, "no method 'sgdg'; there are 'sgd', 'sgd-g', 'adam-g', 'psi-sgd'"),
    (dict(method=torch.ones(9, 9)), TypeError, "method is a Tensor; give model, example input and name, in this order"),
    (dict(method="sgd-g", betas=(0.9, 0.9)), ValueError, "'sgd-g' has no option 'betas'; it has 'alpha'"),
    (dict(method="sgd-g", rest="lion"), ValueError, "no rest 'lion'; there are 'sgd', 'adam', 'adamw'"),
    (dict(method="sgd-g", rule="papers"), ValueError, "rule='papers'"),
    (dict(method="sgd-g", lr=float("nan")), ValueError, "lr=nan, but lr must be a finite number >= 0"),
    (dict(method="sgd-g", lr=-1), ValueError, "lr=-1"),
    (
        dict(method="sgd-g", momentum=1.0),
        ValueError,
        r"momentum=1.0, but momentum must be a number in \[0, 1\)",
    ),
    (dict(method="sgd-g", grad_clip="0.1"), ValueError, "grad_clip='0.1'.*or None"),
    (dict(method="sgd-g", grad_clip=0.0), ValueError, "grad_clip=0.0, but .* a finite number > 0, or None"),
    (dict(method="adam-g", grad_clip=0), ValueError, "grad_clip=0, but .* a finite number > 0, or None"),
    (dict(method="adam-g", betas=0.9), ValueError, "betas=0.9.*pair"),
    (dict(method="adam-g", betas=(0.9, 1.0)), ValueError, r"betas\[1\]=1.0"),
    (dict(method="adam-g", eps=-1e-8), ValueError, "eps=-1e-08"),
    (dict(method="adam-g", alpha=float("inf")), ValueError, "alpha=inf"),
    (dict(method="sgd", alpha=0.1), ValueError, "'sgd' has no option 'alpha'; it has 'dampening'"),
    (dict(method="sgd-g", rest=lambda groups: 3), TypeError, "got int"),
    (dict(method="sgd-g", rest=lambda groups: stepped(groups)), ValueError, "SGD part already has state"),
    (
        dict(method="sgd-g", rest=lambda groups: torch.optim.SGD([*groups, {"params": [good()]}], lr=0.1)),
        ValueError,
        "parameters that it was not given",
    ),
]


def stepped(groups):
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    for group in groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("call, error, message", BAD_CALLS)
def test_bad_input_is_refused_in_one_line_and_changes_nothing(call, error, message):
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(error, match=message) as caught:
        riembn.build_optimizer(model, example()[0], **call)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_a_model_must_be_a_module():
    with pytest.raises(TypeError, match="build_optimizer: model is a generator; give a torch.nn.Module"):
        riembn.build_optimizer(network().parameters(), example()[0], "sgd-g")


def good():
    return nn.Parameter(torch.randn(3, 4))


ZERO_ROW = torch.ones(3, 4)
ZERO_ROW[1] = 0


@pytest.mark.parametrize("optimizer", [SGDG, AdamG, PSISGD])
@pytest.mark.parametrize(
    "second, error, message",
    [
        (
            nn.Parameter(torch.ones(3)),
            ValueError,
            r"number 1 of its group has shape \(3,\).*two or more dimensions",
        ),
        (nn.Parameter(ZERO_ROW), ValueError, r"row 1 of parameter number 1 .*norm 0 "),
        (nn.Parameter(ZERO_ROW / ZERO_ROW), ValueError, r"row 1 .*norm nan "),
        (nn.Parameter(torch.ones(3, 4, dtype=torch.complex64)), ValueError, "complex64; only real"),
        (torch.ones(3, 4, dtype=torch.int64), ValueError, "int64; only real"),
        (torch.ones(3, 4, device="meta"), ValueError, "is on the meta device and holds no numbers; bring"),
    ],
)
def test_bad_parameters_are_refused_before_any_is_touched(optimizer, second, error, message):
    first = good()
    before = first.detach().clone()
    options = {"lr": 0.1} if optimizer is PSISGD else {}
    with pytest.raises(error, match=message) as caught:
        optimizer([first, second], **options)
    assert "\n" not in str(caught.value)
    with pytest.raises(error, match=message):
        optimizer([{"params": [first]}, {"params": [good(), second]}], **options)
    assert torch.equal(first, before)
    made = optimizer([first], **options)
    with pytest.raises(error, match=message):
        made.add_param_group({"params": [good(), second]})
    assert len(made.param_groups) == 1


def test_names_are_told_where_torch_knows_them():
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="parameter 'bias' has shape"):
        SGDG(model.named_parameters())


def test_paths_exclude_each_other():
    with pytest.raises(ValueError, match="foreach=True and fused=True exclude each other"):
        SGDG([good()], foreach=True, fused=True)


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = SGDG(embedding.parameters())
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse gradient.*sparse=False"):
        optimizer.step()


def test_tensor_rate_equals_number_rate():
    for optimizer, options in ((SGDG, {}), (AdamG, {}), (PSISGD, {"momentum": 0.9})):
        p = good()
        q = nn.Parameter(p.detach().clone())
        a, b = optimizer([p], lr=0.1, **options), optimizer([q], lr=torch.tensor(0.1), **options)
        for _ in range(3):
            p.grad = torch.randn(3, 4)
            q.grad = p.grad.clone()
            a.step()
            b.step()
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_a_scheduler_of_one_part_acts_on_it_alone():
    model, optimizer = made("sgd-g")
    schedule = torch.optim.lr_scheduler.StepLR(optimizer.parts[1], 1, gamma=0.1)
    one_step(model, optimizer, 0)
    schedule.step()  # which warns where it takes the part for one that was not stepped
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.01, 0.01])


def test_parts_of_a_part_are_parts():
    """The rest may be several optimizers, made one by its function."""

    def rest(groups):
        weights, others = groups
        return Combined(torch.optim.Adam([weights], lr=0.01), torch.optim.SGD([others], lr=0.1, momentum=0.9))

    model, optimizer = made("sgd-g", rest=rest)
    assert [type(part).__name__ for part in optimizer.parts] == ["SGDG", "Adam", "SGD"]
    assert [(g["part"], g["lr"], len(g["param_names"])) for g in optimizer.param_groups] == [
        (0, 0.2, 2), (1, 0.01, 1), (2, 0.1, 5)
    ]  # fmt: skip
    one_step(model, optimizer, 0)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    again, other = made("sgd-g", rest=rest, seed=1)
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    for pair in ((model, optimizer), (again, other)):
        one_step(*pair, 1)
    assert_same((model, optimizer), (again, other))
    assert len(states(other)[2]) == 3 and states(other)[3].keys() == {"momentum_buffer"}
    model[0].extra, model[0].shift = nn.Parameter(torch.ones(4, 2)), nn.Parameter(torch.ones(4))  # not used
    riembn.add_parameters(optimizer, model, example()[0])
    part_of = {name: group["part"] for group in optimizer.param_groups for name in group["param_names"]}
    assert part_of["0.extra"] == 1 and part_of["0.shift"] == 2


def test_parts_must_be_new_disjoint_optimizers():
    p = good()
    with pytest.raises(ValueError, match="no optimizer given"):
        Combined()
    with pytest.raises(TypeError, match="got int"):
        Combined(3)
    with pytest.raises(ValueError, match="more than one parameter group"):
        Combined(SGDG([p]), torch.optim.SGD([p], lr=0.1))
    stepped = torch.optim.SGD([p], lr=0.1, momentum=0.9)
    p.grad = torch.ones_like(p)
    stepped.step()
    with pytest.raises(ValueError, match="already has state"):
        Combined(stepped)


def test_state_of_another_method_is_refused():
    _, a = made("sgd-g")
    _, b = made("sgd")
    with pytest.raises(ValueError, match="saved groups belong to parts"):
        a.load_state_dict(b.state_dict())


def test_model_without_invariant_weights_is_refused():
    with pytest.raises(ValueError):
        riembn.build_optimizer(nn.Linear(3, 2), torch.randn(4, 3), "sgd-g")


def rates(model, optimizer):
    """The learning rate of every parameter, by name."""
    found = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    return {name: found[id(p)] for name, p in model.named_parameters()}


@pytest.mark.parametrize("method", METHODS)
def test_layers_have_rates_of_their_own(method):
    model, plain = made(method)
    expected = rates(model, plain)
    model, optimizer = made(method, layer_lr={"0.*": 0.25, "3.weight": 0.5})
    factors = {name: 0.25 if name[0] == "0" else 0.5 if name == "3.weight" else 1.0 for name in expected}
    assert rates(model, optimizer) == pytest.approx({name: expected[name] * factors[name] for name in expected})
    one_step(model, optimizer, 0)
    by_function = made(method, layer_lr=lambda name: factors[name])
    one_step(*by_function, 0)
    assert_same((model, optimizer), by_function)
    assert len(made(method, layer_lr={"*": 1.0})[1].param_groups) == len(plain.param_groups)


def test_a_rate_of_zero_holds_a_layer():
    model, optimizer = made("sgd-g", layer_lr=lambda name: float(not name.startswith("0.")))
    before = [p.detach().clone() for p in model.parameters()]
    one_step(model, optimizer, 0)
    moved = {
        name
        for (name, p), was in zip(model.named_parameters(), before, strict=True)
        if (p.detach() - was).abs().max() > 1e-5
    }
    assert "0.weight" not in moved and {"3.weight", "7.weight", "7.bias"} <= moved


def test_a_bias_in_its_weights_vectors_has_its_weights_rate():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    optimizer = riembn.build_optimizer(model, example()[0], "sgd-g", layer_lr={"0.weight": 0.5})
    assert rates(model, optimizer)["0.bias"] == rates(model, optimizer)["0.weight"] == 0.1


def test_a_function_for_the_rest_gets_groups_by_rate():
    seen = []

    def rest(groups):
        seen.extend(groups)
        return torch.optim.SGD(groups, lr=0.2)

    model, optimizer = made("sgd-g", rest=rest, layer_lr={"7.weight": 0.5})
    assert rates(model, optimizer)["7.weight"] == 0.1 and rates(model, optimizer)["7.bias"] == 0.2
    with pytest.raises(ValueError, match="joined groups of different layer_lr"):
        made(
            "sgd-g",
            rest=lambda groups: torch.optim.SGD([p for g in groups for p in g["params"]], lr=0.2),
            layer_lr={"7.weight": 0.5},
        )


@pytest.mark.parametrize(
    "layer_lr, message",
    [
        ({"layer1.*": 0.1}, "layer_lr has 'layer1.*', which fits no parameter of Sequential"),
        ({"0.*": -1.0}, "layer_lr gives -1.0 for '0.weight'"),
        (lambda name: "1", "layer_lr gives '1' for '0.weight'"),
        ({"*": float("nan")}, "layer_lr gives nan"),
    ],
)
def test_bad_layer_rates_are_refused_before_anything_is_changed(layer_lr, message):
    model = network()
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match=message.replace("*", r"\*")) as caught:
        riembn.build_optimizer(model, example()[0], "sgd-g", layer_lr=layer_lr)
    assert "\n" not in str(caught.value) and torch.equal(model[0].weight, before)


def test_it_is_said_how_much_is_on_the_manifold(caplog):
    caplog.set_level(logging.INFO, logger="riembn")
    made("sgd-g")
    assert [r.getMessage() for r in caplog.records] == [
        "riembn: 486 of 901 parameters of Sequential (54%) are on the manifold, 14 of 17 output channels"
    ]
    assert caplog.records[0].levelno == logging.INFO


@pytest.mark.parametrize(
    "head, channels",
    [
        ([nn.Linear(216, 20, bias=False)], "6 of 26"),  # few of the numbers
        ([nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(1, 200, bias=False)], "6 of 206"),  # few of the channels
    ],
)
def test_a_network_with_next_to_nothing_on_the_manifold_is_told(head, channels, caplog):
    model = nn.Sequential(nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Flatten(), *head)
    riembn.build_optimizer(model, example()[0], "sgd-g")
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    (said,) = [message for message in warned if "on the manifold" in message]
    assert f"{channels} output channels, so the method can change little" in said and "\n" not in said


def test_a_network_whose_rows_are_whole_tensors_is_not_told_that_it_has_few(caplog):
    caplog.set_level(logging.INFO, logger="riembn")
    hidden = [nn.Linear(64, 32), nn.LayerNorm(32), nn.ReLU()]
    riembn.build_optimizer(nn.Sequential(nn.Flatten(), *hidden, nn.Linear(32, 100)), example()[0], "sgd-g")
    (said,) = caplog.records
    assert "32 of 132 output channels" in said.getMessage() and said.levelno == logging.INFO


def test_types_name_every_method_and_rest():
    from riembn.methods import REST, MethodName, RestName

    assert set(get_args(MethodName)) == set(riembn.methods) - set(riembn.methods.added)
    assert set(get_args(RestName)) == set(REST)


def test_scales_have_no_decay_in_whichever_shape():
    class Scaled(nn.Module):
        """As ConvNeXt's blocks have it."""

        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 1)
            self.scale = nn.Parameter(torch.full((4, 1, 1), 0.5))

        def forward(self, x):
            return self.head((self.norm(self.conv(x)) * self.scale).mean((2, 3)))

    model = Scaled()
    optimizer = riembn.build_optimizer(model, torch.randn(8, 3, 6, 6), "sgd-g", rest_weight_decay=0.1)
    decays = {id(p): group.get("weight_decay") for group in optimizer.param_groups for p in group["params"]}
    assert decays[id(model.scale)] == 0.0 and decays[id(model.head.weight)] == 0.1
