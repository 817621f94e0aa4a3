"""A study's page says what is missing or shows what the records say, and never trains."""

import pytest

import riembn
from riembn import pages
from riembn.evidence import Study
from riembn.evidence.designs import DESIGNS, core_hours
from riembn.pages.ablation import rates_text

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
    assert core_hours(left) == pytest.approx(steps * 0.021 / 3600)


def test_complete_study_gives_figure_comparisons_and_verdict(study, store, page):
    found = pages.outcome(study, store, ["test_error", "rise"], block="Z", name="clip", claimed="worse")
    page = "\n".join(page)
    assert list(found["verdict"]) == list(study.compare(study.frame(store))["verdict"])
    assert 'id="fig-clip"' in page and "clipping threshold ν, loss per radian" in page
    assert "Verdict, at preset rates: undecided" in page
    assert "worse in test error than at clipping threshold ν = 0.1" in page


def test_values_of_a_page_are_compared_like_those_of_a_record(study, store, page):
    frame = study.frame(store)
    ends = study.ends(frame)
    own = study.compare(frame, "twice", ends=ends.assign(twice=2 * ends["test_error"]))
    assert list(own["difference"]) == list(2 * study.compare(frame)["difference"])
    pages.differences(study, frame, ["test_error", "train_loss"])
    (row,) = study.compare(frame).to_dict("records")
    assert f"{row['difference']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f}) {row['verdict']}" in page[0]


def test_rates_are_called_preset_only_if_they_are(study):
    assert rates_text(study) == "at preset rates"
    assert rates_text(Study(BASE.replace(lr=2.0), vary={"alpha": [0.0, 0.1]})) == "at given rates"
    assert rates_text(DESIGNS["E"]()[0]) == "tuned alike on held-out images"
