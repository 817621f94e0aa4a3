"""A study's page says what is missing or shows what the records say, and never trains."""

import shutil

import pytest

import riembn
from riembn import pages
from riembn.evidence import Study, readings, stats
from riembn.evidence.designs import DESIGNS, core_hours
from riembn.experiment.record import COLUMNS, Record
from riembn.pages.ablation import rates_text
from riembn.pages.drawn import DATA
from riembn.pages.page import typeset

BASE = riembn.preset("vgg-11/digits/sgd-g", width=0.06, train_size=128, epochs=2, drops=(1,))


@pytest.fixture(scope="module")
def study():
    return Study(BASE, vary={"grad_clip": [0.1, None]}, baseline={"grad_clip": 0.1}, seeds=[0, 1])


@pytest.fixture(scope="module")
def store(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    study.run(folder, device="cpu")
    return folder


@pytest.fixture
def page(monkeypatch):
    """What was put on the page, text by text."""
    texts = []

    def display(what, raw=False):
        texts.append(what.get("text/html", "") if raw else what.data)

    monkeypatch.setattr("IPython.display.display", display)
    return texts


def test_missing_runs_are_said_with_their_cost_and_none_is_trained(study, tmp_path, page):
    found = pages.outcome(study, tmp_path / "none", block="Z", name="clip")
    assert found is None and not list(tmp_path.rglob("*.json"))
    (said,) = page
    assert "4 of 4 runs of block Z are missing" in said and "riembn design Z --store" in said


def test_runs_that_follow_the_tuning_are_counted_before_it_is_done(tmp_path):
    (tuned, _) = DESIGNS["E"]()
    left = tuned.remaining(tmp_path)
    assert len(left) == len(tuned.tuning()) + len(tuned.cells) * len(tuned.seeds)
    steps = len(left) * 12 * (10_000 // 128)
    assert core_hours(left) == pytest.approx(steps * 0.021 / 3600, rel=0.02)
    # A study that is itself on held-out images has nothing that follows.
    held_out = DESIGNS["H"]()[1]
    assert held_out.remaining(tmp_path) == held_out.configs()


def test_a_second_look_is_said(study, store, page):
    for looks in (1, 2):
        study.looks = looks
        pages.outcome(study, store, block="Z", name="clip")
        assert ("p-values are multiplied by 2" in page[-1]) == (looks == 2)


def test_complete_study_gives_figure_comparisons_and_verdict(study, store, page):
    found = pages.outcome(study, store, ["test_error", "rise"], block="Z", name="clip", claimed="worse")
    page = "\n".join(page)
    assert list(found["verdict"]) == list(study.compare(study.frame(store))["verdict"])
    assert 'id="fig-clip"' in page and "threshold ν, loss per radian" in page
    assert "Verdict, at preset rates: undecided" in page
    assert "worse in test error than with ν = 0.1" in page


def diverged(study, store, tmp_path, columns):
    """The store of a study with one of its runs diverged."""
    folder = tmp_path / "diverged"
    shutil.copytree(store, folder)
    config = study.configs()[-1]
    riembn.Store(folder).put(Record(config=config, status="diverged", diverged_step=0, columns=columns))
    return folder


def test_loss_of_a_run_that_diverged_is_said_not_to_be_there(study, store, tmp_path, page):
    folder = diverged(study, store, tmp_path, {name: [] for name in COLUMNS})

    def read(frame):
        change = readings.change_in_stage(1)
        moved = frame.groupby("digest").apply(lambda run: change(run).item())
        return study.ends(frame).assign(change=moved)

    assert pages.outcome(study, folder, ["change"], block="Z", name="clip", read=read) is None
    assert page == ["**Nothing to compare:** a run diverged, and has no loss to compare."]
    page.clear()
    found = pages.outcome(study, folder, ["early_error", "early_angle"], block="Z", name="clip")
    assert found["difference"].item() > 0 and "early_angle" not in found
    assert "Not compared or shown:** early angle a step, which" in page[0] and "Verdict" in page[-1]
    page.clear()
    assert pages.outcome(study, folder, ["early_angle", "test_error"], block="Z", name="clip") is None
    assert len(page) == 1


def test_sorted_comparisons_keep_their_numbers(study, store, page):
    more = Study(BASE, vary={"grad_clip": [0.1, None, 0.01]}, baseline={"grad_clip": 0.1}, seeds=[0, 1])
    frame = more.run(store, device="cpu")
    pages.comparisons(more.compare(frame)[::-1], more)
    none, small = sorted(more.compare(frame).to_dict("records"), key=lambda row: -row["grad_clip"])
    rows = [row for row in page[0].split("<tr>") if "<td" in row]
    for shown, row, name in zip(rows, (small, none), ("0.01", "none"), strict=True):
        differs = stats.spelled(row["difference"], row["low"], row["high"])
        parts = f">{name}</td>", typeset(differs), f">{row['verdict']}<"
        assert all(part in shown for part in parts)


def test_what_is_shown_names_its_runs_and_no_others(study, store, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("IPython.display.display", lambda what, raw=False: told.append(what[DATA]) if raw else None)
    pages.outcome(study, store, block="Z", name="clip")
    own = sorted(config.digest() for config in study.configs())
    assert [one["runs"] for one in told] == [own] * 3  # design, figure, comparisons
    told.clear()
    tuned = Study(BASE, seeds=[0, 1], tune={"*": {"lr": [0.1, 0.2]}}, holdout=32)
    tuned.run(tmp_path, device="cpu")
    pages.tuning(tuned, tmp_path)
    pages.table(tuned.tuned(tmp_path), caption="As it is")
    tries = sorted(config.digest() for config in tuned.tuning())
    assert [one["runs"] for one in told] == [tries, []]
    with pytest.raises(ValueError, match="one has no digest"):
        pages.table(tuned.tuned(tmp_path), caption="Without", runs=[None])


def test_two_fields_have_a_place_for_each_combination_beside_what_it_is_compared_with(store, monkeypatch, page):
    vary = {"grad_clip": [0.1, None], "momentum": [0.9, 0.0]}
    study = Study(BASE, vary=vary, baseline={"grad_clip": 0.1}, seeds=[0, 1])
    frame, figures = study.run(store, device="cpu"), []
    monkeypatch.setitem(pages.ablation.__globals__, "show", lambda fig, **said: figures.append((fig, said)))
    pages.ablation(study, frame)
    ((fig, said),) = figures
    (ax,) = fig.axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0\n0.1", "0\nnone", "0.9\n0.1", "0.9\nnone"]
    assert ax.get_xlabel() == "momentum\nthreshold ν, loss per radian" and said["name"] == "grad_clip"
    assert "by momentum and threshold ν." in said["caption"]
    means = study.table(frame).sort_values(["momentum", "grad_clip"])["test_error mean"]
    (estimates,) = (line for line in ax.lines if len(line.get_xdata()) == 4)
    drawn = dict(zip(estimates.get_xdata(), estimates.get_ydata(), strict=True))
    assert [drawn[place] for place in range(4)] == pytest.approx(list(means))
    pages.verdict(study.compare(frame), study)
    assert "momentum = 0, no threshold ν" in page[-1]


def test_single_comparison_is_one_and_is_not_corrected(study, store, page):
    pages.verdict(study.compare(study.frame(store)), study)
    assert "The claim is that it is better" in page[0] and "no threshold ν" in page[0] and "Holm" not in page[0]


@pytest.mark.parametrize(
    ("varied", "baseline", "begun", "told"),
    [
        ({"options": [{}, {"steps": 0}]}, {"options": {}}, "No options subtracted", "- steps=0:"),
        ({"grad_clip": [None, 0.1]}, {"grad_clip": None}, "No threshold ν subtracted", "- ν = 0.1:"),
        ({"momentum": [0.0, 0.5]}, {"momentum": 0.0}, "momentum = 0 subtracted", "- momentum = 0.5:"),
    ],
)
def test_captions_begin_as_sentences_do(varied, baseline, begun, told, tmp_path, page, monkeypatch):
    base = BASE.replace(method="muon-rows") if "options" in varied else BASE
    study, captions = Study(base, vary=varied, baseline=baseline, seeds=[0, 1]), []
    found = study.compare(study.run(tmp_path, device="cpu"))
    monkeypatch.setitem(pages.ablation.__globals__, "table", lambda shown, caption, **said: captions.append(caption))
    pages.comparisons(found, study)
    assert captions[0].startswith(begun)
    pages.verdict(found, study)
    assert told in page[-1]


def test_tuning_says_what_it_chose_and_whether_at_the_edge(tmp_path, page):
    study = Study(BASE, seeds=[0, 1], tune={"*": {"lr": [0.1, 0.2]}}, holdout=32)
    study.run(tmp_path, device="cpu")
    pages.tuning(study, tmp_path)
    best = study.tuned(tmp_path).query("best")["lr"].item()
    assert f"lr {best:g}" in page[0] and "0.1 to 0.2" in page[0] and ">lr<" in page[0]


def test_values_of_a_page_are_compared_like_those_of_a_record(study, store, page):
    frame = study.frame(store)
    ends = study.ends(frame)
    own = study.compare(frame, "twice", ends=ends.assign(twice=2 * ends["test_error"]))
    assert list(own["difference"]) == list(2 * study.compare(frame)["difference"])
    pages.differences(study, frame, ["test_error", "train_loss"])
    (row,) = study.compare(frame).to_dict("records")
    text = f"{stats.spelled(row['difference'], row['low'], row['high'])} {row['verdict']}"
    assert typeset(text) in page[0]


def test_minus_signs_and_intervals_are_typeset():
    said = typeset("vgg-11 at 5e-4: -0.5 points (-1 to +0.1), 2026-11-26, x = -.5, pages 1-3")
    assert said == "vgg-11 at 5e-4: −0.5 points (−1\u00a0to\u00a0+0.1), 2026-11-26, x = −.5, pages 1-3"


def test_rates_are_called_preset_only_if_they_are(study):
    assert rates_text(study) == "at preset rates"
    assert rates_text(Study(BASE.replace(lr=2.0), vary={"alpha": [0.0, 0.1]})) == "at given rates"
    assert rates_text(DESIGNS["C"]()[0]) == "at given rates"  # SGD's own, with four times the decay
    assert rates_text(DESIGNS["E"]()[0]) == "tuned alike on held-out images"
