"""A study runs what it says, tunes on held-out images only, and compares each cell with its baseline."""

import importlib
import math

import pytest

import riembn
from riembn.evidence import Study
from riembn.evidence.designs import DESIGNS
from riembn.experiment.record import COLUMNS, Record

SMALL = {"width": 0.06, "train_size": 128, "epochs": 2, "drops": (1,)}
BASE = riembn.preset("vgg-11/digits/sgd-g", **SMALL)


def test_cells_are_all_combinations_and_seeds_repeat_them():
    study = Study(BASE, vary={"alpha": [0.0, 0.1], "grad_clip": [0.1, None]}, baseline={"alpha": 0.0}, seeds=[0, 1])
    assert len(study.cells) == 4 and len(study.configs()) == 8
    assert [c.seed for c in study.configs()] == [0, 1] * 4
    assert {(c.alpha, c.grad_clip) for c in study.configs()} == {(a, v) for a in (0.0, 0.1) for v in (0.1, None)}


def test_study_runs_compares_and_decides(tmp_path):
    study = Study(BASE, vary={"lr": [0.2, 1e-6]}, baseline={"lr": 0.2}, seeds=range(3))
    assert len(study.missing(tmp_path)) == 6
    frame = study.run(tmp_path, device="cpu")
    assert study.missing(tmp_path) == [] and len(frame) == 12 and set(frame["cell"]) == {0, 1}
    (row,) = study.compare(frame, "train_loss").to_dict("records")
    assert row["lr"] == 1e-6 and row["difference"] > 0 and row["n"] == 3
    assert study.verdict(frame, "train_loss", "worse") in ("supported", "undecided")
    assert list(study.table(frame)["lr"]) == [0.2, 1e-6]
    assert {"early_error", "rise", "early_angle"} <= set(study.ends(frame))
    half_as_wide = frame.assign(angle=0.1, angle_rms=0.1 * math.sqrt(1.25))
    assert study.ends(half_as_wide)["early_spread"].to_list() == pytest.approx([0.5] * 6)
    assert frame.equals(study.frame(tmp_path))


def test_deleted_record_is_the_only_one_that_is_trained_again(tmp_path):
    study = Study(BASE, vary={"alpha": [0.0, 0.1]}, baseline={"alpha": 0.0}, seeds=[0, 1])
    study.run(tmp_path, device="cpu")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    lost = sorted(before)[1]
    lost.unlink()
    assert [c.name for c in study.missing(tmp_path)] == [lost.stem]
    study.run(tmp_path, device="cpu")
    again = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert {path for path in again if again[path] != before[path]} == {lost}


def test_tuning_looks_at_held_out_images_alone_and_chooses_the_best(tmp_path):
    tries = {"sgd": {"lr": [0.1, 1e-6]}, "sgd-g": [{"lr": 0.2}, {"lr": 1e-6}]}
    study = Study(
        BASE, methods=["sgd", "sgd-g"], baseline="sgd", seeds=[0, 1], tune=tries, holdout=256, tune_seeds=[7]
    )
    assert len(study.tuning()) == 4
    assert all(c.holdout == 256 and c.seed == 7 for c in study.tuning())
    with pytest.raises(ValueError, match="what was tuned is in a store"):
        study.configs()
    with pytest.raises(FileNotFoundError, match="call run first"):
        study.configs(tmp_path)
    frame = study.run(tmp_path, device="cpu")
    for config in study.tuning():
        record = riembn.Store(tmp_path).get(config)
        assert record.columns["test_error"] == [None, None] and record.predictions is None
        assert record.columns["validation_error"][0] is None and record.columns["validation_error"][1] is not None
    table = study.tuned(tmp_path)
    best = table[table["best"]].set_index("method")["lr"].to_dict()
    for method, runs in table.groupby("method"):
        assert runs.loc[runs["best"], "validation_error"].item() == runs["validation_error"].min()
        assert {c.lr for c in study.configs(tmp_path) if c.method == method} == {best[method]}
    assert (frame["holdout"] == 0).all() and frame["test_error"].notna().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [0]}, "seeds=\\[0\\] is not accepted; give two or more"),
        ({"seeds": [0, 0]}, "give two or more, each once"),
        ({"baseline": {"alpha": 0.5}}, "baseline alpha=0.5 is not among"),
        ({"vary": {"alpha": [0.1, 0.1]}}, "give values, each once"),
        ({"vary": {"alpha": [0.0, 0.1]}, "methods": ["psi-sgd"]}, "alpha=0.1 does not act with method='psi-sgd'"),
        ({"vary": {"options": [{}, {"foreach": None}]}, "baseline": None}, "the run of another cell too"),
        ({"tune": {"*": {"lr": [0.1, 0.2]}}, "seeds": [100, 1]}, "overlap the tuning seeds"),
        ({"vary": {"seed": [0, 1]}, "baseline": None}, "give methods=…, seeds=…"),
        ({"vary": {"method": ["sgd", "sgd-g"]}, "baseline": None}, "give methods=…, seeds=…"),
        ({"settings": {"sgdg": {"lr": 0.1}}}, "settings names sgdg, not among the methods"),
        ({"tune": {"sgdg": {"lr": [0.1, 0.2]}}}, "tune names sgdg, not among the methods"),
        ({"tune": {"*": {"alpha": [0.1, 0.2]}}}, "alpha is varied and tuned"),
        ({"tune": {"*": {"beta2": [0.9, 0.99]}}}, "beta2=0.9 does not act with method='sgd-g'"),
        ({"settings": {"sgd-g": {"padding": 2}}}, "padding=2 does not act"),
        ({"tune_by": "test_error"}, "tune_by='test_error' is not accepted"),
        ({"tune_by": "validation"}, "tune_by='validation' is not accepted"),
    ],
)
def test_study_that_cannot_be_is_refused_in_one_line(change, message):
    given = {"vary": {"alpha": [0.0, 0.1]}, "baseline": {"alpha": 0.0}, "seeds": [0, 1], **change}
    with pytest.raises(ValueError, match=message) as caught:
        Study(BASE, **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("train_size", [None, 256]),
        ("drops", [(), (1,)]),
        ("options", [{"maximize": False}, {"maximize": True}]),
        ("nesterov", [True, False]),
        ("rest_lr", [0.1, 0.2]),
    ],
)
def test_baseline_of_every_kind_is_found_among_the_runs(tmp_path, monkeypatch, field, values):
    study = Study(BASE, vary={field: values}, baseline={field: values[0]}, seeds=[0, 1])
    frame = as_if_run(study, tmp_path)
    (row,) = study.compare(frame).to_dict("records")
    assert row["n"] == 2
    assert len(study.table(frame)) == 2
    drawn = []
    page = importlib.import_module("riembn.pages.ablation")
    monkeypatch.setattr(page, "show", lambda fig, **told: drawn.append(fig.axes[0].get_xticklabels()))
    page.ablation(study, frame)
    assert len(drawn[0]) == 2


def as_if_run(study: Study, store):
    """The study's frame, of records with made-up numbers."""
    for place, config in enumerate(study.configs()):
        columns = {name: [1.0 + place] * config.epochs for name in COLUMNS}
        columns["epoch"] = list(range(1, config.epochs + 1))
        riembn.Store(store).put(Record(config=config, status="finished", columns=columns))
    return study.frame(store)


def test_tuning_reads_the_last_epoch_of_each_cell():
    study = Study(BASE, vary={"epochs": [2, 3]}, seeds=[0, 1], tune={"*": {"lr": [0.1, 0.2]}})
    assert {c.evaluate_at for c in study.tuning() if c.epochs == 3} == {(3,)}
    assert {c.evaluate_at for c in study.tuning() if c.epochs == 2} == {(2,)}


def test_cell_whose_tries_all_diverged_is_not_run(tmp_path):
    study = Study(BASE, seeds=[0, 1], tune={"*": {"lr": [0.1, 0.2]}}, holdout=256)
    for config in study.tuning():
        lost = Record(config=config, status="diverged", diverged_step=0, columns={name: [] for name in COLUMNS})
        riembn.Store(tmp_path).put(lost)
    with pytest.raises(ValueError, match="every try of {'method': 'sgd-g'} diverged; tune on another grid"):
        study.configs(tmp_path)


def test_early_epochs_are_found_at_a_rate_of_many_digits(tmp_path):
    study = Study(BASE, vary={"lr": [0.1, 0.123456789]}, seeds=[0, 1])
    frame = as_if_run(study, tmp_path)
    frame["current_lr"] = [float(f"{rate:.7g}") for rate in frame["lr"]]
    assert study.ends(frame)["early_error"].notna().all()


def test_rise_is_from_one_evaluation_to_the_next(tmp_path):
    study = Study(BASE.replace(epochs=6), vary={"alpha": [0.0, 0.1]}, seeds=[0, 1])
    frame = as_if_run(study, tmp_path)
    for errors, rise in (
        ([9, math.nan, 8, math.nan, 8.5, math.nan], 0.5),
        ([math.nan, 9, 8, math.nan, math.nan, 7], 0.0),
        ([math.nan] * 5 + [7], math.nan),
    ):
        ends = study.ends(frame.assign(test_error=errors * 4))
        assert list(ends["rise"]) == pytest.approx([rise] * 4, nan_ok=True)


def test_run_that_diverged_before_the_drop_has_no_early_error_but_a_given_one(tmp_path):
    study = Study(BASE.replace(epochs=6, drops=(3,)), vary={"alpha": [0.0, 0.1]}, seeds=[0, 1])
    frame = as_if_run(study, tmp_path)
    frame["current_lr"] = frame["lr"].where(frame["epoch"] <= 3, 0.2 * frame["lr"])
    lived = {0.0: 2, 0.1: 4}  # epochs, of seed 1
    frame.loc[frame["seed"] == 1, "status"] = "diverged"
    frame = frame[(frame["seed"] == 0) | (frame["epoch"] <= frame["alpha"].map(lived))]
    ends = study.ends(frame, {"test_error": 90.0, "early_error": 91.0}).set_index(["alpha", "seed"])
    assert ends["early_error"][0.0, 1] == 91 and ends["early_loss"].isna().sum() == 1
    assert ends["early_error"][0.1, 1] < 91 and ends["early_loss"].notna()[0.1, 1]


def test_unknown_field_is_refused():
    with pytest.raises(TypeError, match="Study: no field learning_rate"):
        Study(BASE, vary={"learning_rate": [1, 2]})


@pytest.mark.parametrize("name", DESIGNS)
def test_designs_give_every_method_as_many_tries(name):
    for study in DESIGNS[name]():
        assert len(study.configs() if not study.tuning() else study.seeds) >= 2
        tries = {len(study._tries(cell)) for cell in study.cells}
        assert len(tries) == 1
        # Runs on held-out images have the seeds of tuning, and none that a claim is judged by.
        assert study.base.holdout or not set(study.seeds) & set(study.tune_seeds)
        assert all(config.holdout == 5000 for config in study.tuning())
