"""A configuration names its result: what is accepted, what the digest sees, and what the presets say."""

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from riembn import Method, methods, train
from riembn.evidence.published import CHO_LEE, YI_PLAIN, YI_WITH_DECAY
from riembn.experiment.config import FIELDS, KINDS, RunConfig, acting
from riembn.experiment.grid import grid
from riembn.experiment.presets import PAPER_CELLS, YI_CELLS, YI_IMAGENET, preset

START = {"network": "vgg-11", "dataset": "digits", "method": "sgd-g", "epochs": 10, "lr": 0.2}


def test_digest_is_pinned():
    # A failure here means that every committed record has lost its name: restore what changed, or raise RECIPE.
    assert RunConfig(**START, rest_lr=0.01).digest() == "ae51d389891dca13"
    assert preset("wrn-28-10/cifar10/adam-g", "paper", seed=3).digest() == "0c68af72d12f4484"


def test_committed_records_keep_their_digests():
    records = Path(__file__).resolve().parents[2] / "book" / "records"
    found = {path.stem: json.loads(path.read_text()) for path in records.glob("*.json")}
    assert len(found) >= 89
    for name, content in found.items():
        assert RunConfig.from_dict(content["config"]).digest() == content["digest"] == name[-16:]


CHANGES = {
    "network": "wrn-10-1",
    "dataset": "fashion-mnist",
    "method": "adam-g",
    "epochs": 11,
    "lr": 0.1,
    "width": 0.5,
    "train_size": 1000,
    "rule": "paper",
    "batch_size": 64,
    "rest_lr": 0.03,
    "momentum": 0.5,
    "rest_momentum": 0.5,
    "grad_clip": None,
    "alpha": 0.1,
    "weight_decay": 0.0,
    "drops": (5,),
    "bn_decay": 0.9,
    "augment": True,
    "pixels": "unit",
    "precision": "bfloat16",
    "accumulate": 2,
    "seed": 1,
    "holdout": 100,
    "rest": "adamw",
    "rest_options": {"foreach": True},
    "nesterov": False,
    "options": {"foreach": True},
    "row_scale": 3,
    "start_noise": 1e-6,
    "schedule": "cosine",
    "warmup": 1.0,
    "loss": "squared",
    "label_smoothing": 0.1,
    "evaluate_at": (5,),
}


def test_digest_differs_with_every_field_that_acts():
    start = RunConfig(**START)
    digests = [start.digest()] + [start.replace(**{name: value}).digest() for name, value in CHANGES.items()]
    assert len(set(digests)) == len(digests)
    # Those that act only beside another one.
    wrn = start.replace(network="wrn-10-1")
    assert wrn.replace(dropout=0.3).digest() != wrn.digest()
    adam = start.replace(method="adam-g")
    assert adam.replace(beta2=0.9).digest() != adam.digest()
    dropped = start.replace(drops=(5,))
    assert dropped.replace(drop_factor=0.5).digest() != dropped.digest()
    augmented = start.replace(augment=True)
    assert augmented.replace(padding=2).digest() != augmented.digest() != augmented.replace(flip=False).digest()
    sgd = start.replace(method="sgd", drops=(5,))
    controls = [sgd.replace(decay_on=v) for v in ("invariant", "rest")]
    controls += [sgd.replace(lengths=v) for v in ("frozen", "replayed")]
    assert len({c.digest() for c in (sgd, *controls)}) == 5
    beside = {"dropout", "beta2", "drop_factor", "padding", "flip", "decay_on", "lengths"}
    assert set(CHANGES) | beside | {"code"} == set(FIELDS)


@given(
    method=st.sampled_from(sorted(methods)),
    rest_lr=st.floats(1e-3, 1),
    grad_clip=st.none() | st.floats(1e-3, 1),
    alpha=st.floats(0, 1),
    beta2=st.floats(0, 0.999),
)
def test_fields_that_do_not_act_do_not_matter(method, **fields):
    acts = {name: value for name, value in fields.items() if name in acting(methods[method], {})}
    start = {**START, "method": method}
    assert RunConfig(**start, **fields) == RunConfig(**start, **acts)
    assert RunConfig(**start, **fields).digest() == RunConfig(**start, **acts).digest()


def test_a_factor_without_drops_does_not_matter():
    start = RunConfig(**START)
    assert start.replace(drop_factor=0.5) == start
    assert start.replace(drops=(3, 6), drop_factor=1.0) == start


def test_augmentation_that_does_nothing_is_none():
    plain = RunConfig(**START)
    idle = RunConfig(**START, augment=True, padding=0, flip=False)
    assert idle == plain and idle.digest() == plain.digest() and not idle.augment
    assert (plain.padding, plain.flip) == (0, False)  # what is done, not what would be
    assert idle.replace(augment=True) == RunConfig(**START, augment=True)
    # Off is off: asked for beside values of the same field that act.
    padded = RunConfig(**START, augment=True, flip=False)
    assert [c.padding for c in grid(padded, padding=[0, 2])] == [0, 2]
    with pytest.raises(ValueError, match="padding=2 does not act"):
        grid(plain, padding=[0, 2])


def test_rates_of_a_run_without_decay_on_its_rows_replay_themselves():
    free = RunConfig(**{**START, "method": "sgd"})
    assert free.replace(lengths="replayed") != free
    for change in ({"weight_decay": 0.0}, {"decay_on": "rest"}):
        same = free.replace(**change)
        assert same.replace(lengths="replayed").digest() == same.digest()
        assert same.replace(lengths="frozen", drops=(5,)).digest() != same.replace(drops=(5,)).digest()


def test_integers_and_floats_of_equal_value_are_the_same_run():
    assert RunConfig(**{**START, "lr": 1}).digest() == RunConfig(**{**START, "lr": 1.0}).digest()


@pytest.mark.parametrize(
    ("method", "fields", "same"),
    [
        ("adam-g", {"options": {"eps": 1e-8}}, {}),
        ("adamw", {"options": {"betas": (0.9, 0.999), "foreach": None}}, {}),
        ("muon-rows", {"options": {"momentum": 0.6}}, {}),
        ("adamw", {"options": {"betas": (0, 0.999)}}, {"options": {"betas": (0.0, 0.999)}}),
        ("sgd", {"options": {"dampening": 1}}, {"options": {"dampening": 1.0}}),
        ("sgd-g", {"rest_options": {"dampening": 0.0}}, {}),
        ("sgd-g", {"rest": "adam", "rest_options": {"amsgrad": False}}, {"rest": "adam"}),
        ("sgd-g", {"options": {"foreach": True}, "rest_options": {"foreach": True}}, {"options": {"foreach": True}}),
        ("sgd", {"evaluate_at": (5, 10)}, {"evaluate_at": (5,)}),
        ("sgd", {"evaluate_at": tuple(range(1, 10))}, {}),
        ("sgd", {"momentum": 0.0, "nesterov": False}, {"momentum": 0.0}),
        ("sgd-g", {"rest_momentum": 0.0, "nesterov": False}, {"rest_momentum": 0.0}),
        ("sgd", {"weight_decay": 0.0, "decay_on": "rest"}, {"weight_decay": 0.0}),
    ],
)
def test_one_run_has_one_digest_however_it_is_said(method, fields, same):
    start = {**START, "method": method}
    one, other = RunConfig(**start, **fields), RunConfig(**start, **same)
    assert one == other and one.digest() == other.digest()
    assert RunConfig.from_dict(json.loads(json.dumps(one.as_dict()))) == one


def test_numbers_of_options_without_a_default_are_spelled_alike():
    def made(value: float) -> RunConfig:
        methods["mine"] = Method(optimizer=lambda params, lr, *, far, **_: torch.optim.SGD(params, lr), lr=0.1)
        try:
            return RunConfig(**{**START, "method": "mine", "options": {"far": value, "of": [1, value]}})
        finally:
            del methods["mine"]

    assert made(2) == made(2.0) and made(2).digest() == made(2.0).digest() != made(2.5).digest()


def test_options_of_a_method_that_the_rest_does_not_follow_count():
    """What a method's options say of both parts, the rest's own may take back."""
    both = RunConfig(**START, options={"foreach": True})
    assert both.digest() != RunConfig(**START, options={"foreach": True}, rest_options={"foreach": None}).digest()


def test_epochs_of_evaluation_follow_a_change_of_epochs():
    start = RunConfig(**START, evaluate_at=(5,))
    assert start.replace(epochs=20).evaluate_at == (5, 20)
    assert RunConfig(**START, evaluate_at=(10,)).replace(epochs=3).evaluate_at == (3,)
    with pytest.raises(ValueError, match="evaluate_at=.* is not accepted; give epochs up to epochs=4"):
        start.replace(epochs=4)


def image_folder(path: Path, value: int = 0) -> str:
    from PIL import Image

    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (path / part / name).mkdir(parents=True)
            Image.new("L", (8, 8), value + len(name)).save(path / part / name / "0.png")
    return f"imagefolder:{path}"


def test_digest_of_an_image_folder_is_that_of_its_content(tmp_path):
    def config(dataset: str) -> RunConfig:
        return RunConfig(**{**START, "dataset": dataset})

    here, there = (config(image_folder(tmp_path / place / "data")) for place in ("a", "b"))
    other = config(image_folder(tmp_path / "c" / "data", value=7))
    assert here.digest() == there.digest() != other.digest()
    assert "/" not in here.name
    (tmp_path / "a" / "data" / "train" / "cat" / "0.png").write_bytes(
        (tmp_path / "c" / "data" / "train" / "cat" / "0.png").read_bytes()
    )
    assert config(here.dataset).digest() not in (here.digest(), other.digest())
    # A grid of many runs looks at a folder once; what is trained on is looked at again.
    assert here.replace(seed=1, method="sgd").code == here.code
    with pytest.raises(ValueError, match="has changed since its configuration was made"):
        train(here.replace(batch_size=2), device="cpu")


@pytest.mark.parametrize("method", sorted(methods))
def test_configuration_survives_json(method):
    config = RunConfig(**{**START, "method": method, "drops": (3, 6)})
    assert RunConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config


def test_from_dict_gives_missing_fields_their_defaults():
    assert RunConfig.from_dict(START) == RunConfig(**START)
    with pytest.raises(ValueError, match="no field lrr; the fields are network"):
        RunConfig.from_dict({**START, "lrr": 1})


def test_replaced_method_gets_its_own_defaults():
    sgd = RunConfig(**{**START, "method": "sgd"})
    assert (sgd.grad_clip, sgd.rest_lr, sgd.beta2) == (None, None, None)
    adam = sgd.replace(method="adam-g")
    assert (adam.grad_clip, adam.rest_lr, adam.beta2) == (0.1, 0.1, 0.99)
    unclipped = RunConfig(**START, grad_clip=None)
    assert unclipped.replace(method="adam-g").grad_clip is None  # it was a wish, not a neutral value


def test_replaced_rest_gets_its_own_defaults():
    start = RunConfig(**START)
    adam = start.replace(rest="adam", rest_options={"eps": 1e-3})
    assert (adam.rest_lr, adam.rest_momentum) == (1e-3, None)
    back = adam.replace(rest="sgd")
    assert back == start and back.digest() == start.digest()
    assert adam.replace(seed=1).rest_options == {"eps": 1e-3}


def test_options_of_another_method_are_not_kept():
    adam = RunConfig(**{**START, "method": "adam", "options": {"eps": 1e-3}})
    assert adam.replace(seed=1).options == {"eps": 1e-3}
    assert adam.replace(method="adamw").options == {}
    assert adam.replace(method="adamw", options={"eps": 1e-2}).options == {"eps": 1e-2}


def test_what_a_methods_entry_says_is_part_of_the_digest():
    def made(**entry: object) -> RunConfig:
        methods["mine"] = Method(optimizer=torch.optim.AdamW, lr=0.1, **entry)
        try:
            return RunConfig(**{**START, "method": "mine"})
        finally:
            del methods["mine"]

    entries = [{}, {"kind": "whole"}, {"options": {"eps": 1e-3}}, {"options": {"eps": 1e-2}}, {"rest": "adam"}]
    assert len({made(**entry).digest() for entry in entries}) == len(entries)
    assert made(rest="adam").rest == "adam" and made().digest() == made().digest()


@pytest.mark.parametrize("text", ["eps=1e-3,foreach=True", "eps", "1eps=2", "eps:foreach", "=1"])
def test_options_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="options=.* is not accepted; give names and values"):
        KINDS["options"].parse("options", text)


def test_replace_refuses_unknown_fields():
    with pytest.raises(TypeError, match="no field learning_rate; the fields are network, dataset"):
        RunConfig(**START).replace(learning_rate=1)


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("network", "resnet-19", "vgg-11, vgg-13"),
        ("network", "vgg-12", "vgg-11, vgg-13"),
        ("network", "wrn-27-10", "DEPTH 10, 16, 22"),
        ("network", "wrn-28-0", "DEPTH 10, 16, 22"),
        ("dataset", "imagenet", "digits, fashion-mnist"),
        ("dataset", "imagefolder:", "imagefolder:PATH"),
        ("method", "adagrad", "one of sgd, sgd-g, adam-g, psi-sgd"),
        ("epochs", 0, "a whole number of at least 1"),
        ("epochs", 2.0, "a whole number"),
        ("epochs", True, "a whole number"),
        ("lr", float("nan"), "a finite number"),
        ("lr", 0.0, "a finite number in (0, inf)"),
        ("lr", float("inf"), "a finite number"),
        ("lr", "0.1", "a finite number"),
        ("width", -1, "a finite number in (0, inf)"),
        ("dropout", 1.0, "[0, 0.99]"),
        ("dropout", 0.3, "0 with network='vgg-11'"),
        ("train_size", 0, "at least 1, or None"),
        ("train_size", 100, "at most train_size=100"),
        ("rule", "all", "one of invariant, paper"),
        ("batch_size", 1, "at least 2"),
        ("precision", "fp16", "one of float32, bfloat16, float16"),
        ("accumulate", 0, "at least 1"),
        ("accumulate", 3, "parts of equal size, two images or more, of batch_size=128"),
        ("accumulate", 128, "parts of equal size, two images or more, of batch_size=128"),
        ("rest_momentum", None, "a number, since method='sgd-g' uses it"),
        ("rest_lr", 0.0, "a finite number in (0, inf), or None"),
        ("schedule", "exponential", "one of steps, cosine, linear, one-cycle"),
        ("warmup", 11.0, "at most epochs=10"),
        ("evaluate_at", (11,), "epochs up to epochs=10"),
        ("lengths", "fixed", "one of free, frozen, replayed"),
        ("options", 3, "names and values"),
        ("options", {"lr": 1.0}, "takes foreach, fused, maximize"),
        ("rest_options", {"lr": 1.0}, "rest='sgd' takes dampening"),
        ("rest_options", {"epsilon": 1.0}, "rest='sgd' takes dampening"),
        ("momentum", 1.0, "[0, 0.9999]"),
        ("grad_clip", 0.0, "(0, inf), or None"),
        ("alpha", -0.1, "[0, inf)"),
        ("beta2", 1.0, "[0, 0.999999], or None"),
        ("weight_decay", -1e-4, "[0, inf)"),
        ("drops", (5, 5), "each larger"),
        ("drops", (0, 5), "at least 1"),
        ("drops", 5, "whole numbers"),
        ("drops", (5, 10), "before the last one, with epochs=10"),
        ("drop_factor", 2.0, "(0, 1]"),
        ("bn_decay", 1.0, "[0, 0.9999]"),
        ("augment", 1, "True or False"),
        ("pixels", "255", "one of standardize, unit"),
        ("seed", -1, "at least 0"),
    ],
)
def test_refused_value_is_named_with_what_is_accepted(field, value, accepted):
    with pytest.raises((ValueError, TypeError)) as caught:
        RunConfig(**{**START, field: value})
    message = str(caught.value)
    assert message.startswith("RunConfig: ") and "\n" not in message
    assert accepted in message
    assert field in message and (str(value) in message or repr(value) in message)


# The papers' cells, as the TensorFlow release of Cho and Lee trains them.
CIFAR = {"epochs": 200, "drops": (60, 120, 160), "drop_factor": 0.2, "augment": True, "pixels": "standardize"}
SVHN = {"epochs": 160, "drops": (60, 120), "drop_factor": 0.1, "augment": False, "pixels": "unit"}
RATES = {
    ("cifar", "sgd"): (0.1, None),
    ("cifar", "sgd-g"): (0.2, 0.01),
    ("cifar", "adam-g"): (0.05, 0.01),
    ("svhn", "sgd"): (0.01, None),
    ("svhn", "sgd-g"): (0.02, 0.001),
    ("svhn", "adam-g"): (0.005, 0.001),
}


@pytest.mark.parametrize("method", ["sgd", "sgd-g", "adam-g"])
@pytest.mark.parametrize("cell", [f"{n}/{d}" for d, networks in PAPER_CELLS.items() for n in networks])
def test_paper_presets_are_the_release(cell, method):
    config = preset(f"{cell}/{method}", profile="paper")
    kind = "svhn" if "svhn" in cell else "cifar"
    expected = SVHN if kind == "svhn" else CIFAR
    expected = {**expected, "batch_size": 128, "momentum": 0.9, "weight_decay": 5e-4, "bn_decay": 0.99}
    expected |= {"rule": "paper", "width": 1.0, "train_size": None}
    expected |= dict(zip(("lr", "rest_lr"), RATES[kind, method], strict=True))
    if method != "sgd":
        expected |= {"grad_clip": 0.1, "alpha": 0.1, "rest_momentum": 0.9}
    if method == "adam-g":
        expected["beta2"] = 0.99
    expected["dropout"] = 0.0 if "vgg" in cell else 0.4 if kind == "svhn" else 0.3
    assert {name: getattr(config, name) for name in expected} == expected
    assert f"{config.network}/{config.dataset}/{config.method}" == f"{cell}/{method}"


def test_papers_tables_have_these_cells():
    cifar = ("vgg-13", "vgg-19", "wrn-28-10", "wrn-40-10")
    assert PAPER_CELLS == {
        "cifar10": cifar,
        "cifar100": cifar,
        "svhn": ("vgg-13", "vgg-19", "wrn-16-4", "wrn-22-8"),
    }


@pytest.mark.parametrize("method", sorted(methods))
@pytest.mark.parametrize("profile", ["laptop", "smoke"])
def test_small_presets_keep_the_method_and_shrink_the_rest(profile, method):
    paper = preset(f"wrn-28-10/cifar10/{method}", profile="paper")
    small = preset(f"wrn-28-10/cifar10/{method}", profile=profile)
    for name in (
        "method",
        "lr",
        "rest_lr",
        "momentum",
        "grad_clip",
        "alpha",
        "beta2",
        "weight_decay",
        "rule",
    ):
        assert getattr(small, name) == getattr(paper, name)
    assert small.dataset == {"laptop": "fashion-mnist", "smoke": "digits"}[profile]
    assert small.epochs < 50 and small.network.startswith("wrn-10-")


def test_preset_takes_small_data_sets_by_name():
    assert preset("vgg-11/fashion-mnist/sgd-g", profile="laptop").dataset == "fashion-mnist"
    assert preset("vgg-11/digits/sgd-g", profile="laptop").dataset == "digits"
    assert preset("vgg-11/fashion-mnist/sgd-g", profile="smoke").dataset == "digits"


def test_preset_override_wins_and_drops_move_with_the_epochs():
    config = preset("wrn-28-10/cifar10/sgd-g", profile="paper", seed=3, lr=0.5, epochs=20)
    assert (config.seed, config.lr, config.epochs, config.drops) == (3, 0.5, 20, (6, 12, 16))
    assert preset("wrn-28-10/cifar10/sgd-g", profile="paper", epochs=20, drops=(1,)).drops == (1,)
    assert preset("wrn-28-10/cifar10/sgd-g", profile="paper", epochs=1).drops == ()


@pytest.mark.parametrize(
    ("name", "profile", "message"),
    [
        ("vgg-13/sgd", "smoke", "'vgg-13/sgd' is no preset; give NETWORK/DATASET/METHOD"),
        (None, "smoke", "None is no preset"),
        ("vgg-13/cifar10/adagrad", "smoke", "unknown method 'adagrad' in 'vgg-13/cifar10/adagrad'; give one of sgd"),
        ("vgg-13/mnist/sgd", "smoke", "dataset='mnist' is not accepted; give one of digits"),
        ("vgg-12/cifar10/sgd", "smoke", "network='vgg-12' is not accepted"),
        ("vgg-13/cifar10/sgd", "desktop", "unknown profile 'desktop'; give smoke, laptop or paper"),
        ("vgg-11/cifar10/sgd", "paper", "no cell of the papers is called 'vgg-11/cifar10/sgd'"),
        ("vgg-13/fashion-mnist/sgd", "paper", "no cell of the papers"),
    ],
)
def test_unknown_preset_is_refused_in_one_line(name, profile, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        preset(name, profile)
    assert "\n" not in str(caught.value)


def test_preset_refuses_unknown_fields_and_bad_epochs():
    with pytest.raises(TypeError, match="preset: no field learning_rate; the fields are network"):
        preset("vgg-13/cifar10/sgd", learning_rate=1)
    with pytest.raises(TypeError, match="epochs='3' is not accepted"):
        preset("vgg-13/cifar10/sgd", epochs="3")


def test_yis_cells_are_his_settings():
    expected = {"sgd": (0.1, None), "sgd-g": (0.2, 0.1), "psi-sgd": (0.1, 0.1), "adam": (0.001, None)}
    for dataset, networks in YI_CELLS.items():
        for network in networks:
            for method, rates in expected.items():
                config = preset(f"{network}/{dataset}/{method}", profile="paper")
                assert (config.lr, config.rest_lr) == rates and config.epochs == 200 and config.rule == "invariant"
                assert (config.drops, config.drop_factor, config.batch_size) == ((60, 120, 160), 0.2, 128)
                assert method == "adam" or config.weight_decay == 0
    assert preset("resnet-20/cifar10/psi-sgd", profile="paper", weight_decay=5e-4).weight_decay == 5e-4


def test_imagenets_cells_are_read_from_a_folder(tmp_path):
    config = preset(f"resnet-18/{image_folder(tmp_path / 'net')}/psi-sgd", profile="paper")
    assert (config.network, config.epochs, config.drops) == ("resnet-18", 100, (30, 60, 90))


def test_every_published_cell_can_be_run_as_it_stands():
    assert sum(map(len, CHO_LEE.values())) == 36 and len(CHO_LEE) == 12
    assert sum(map(len, (*YI_PLAIN.values(), *YI_WITH_DECAY.values()))) == 95
    for dataset, network in CHO_LEE:
        assert preset(f"{network}/{dataset}/sgd-g", profile="paper").network == network
    for dataset, network in (*YI_PLAIN, *YI_WITH_DECAY):
        assert network in YI_CELLS.get(dataset, YI_IMAGENET)
