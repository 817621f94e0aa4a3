"""Verdicts follow from the records by the chapters' rules, in both directions, and never from too little."""

import math
from pathlib import Path

import pandas
import pytest

from riembn.__main__ import main
from riembn.evidence import stats
from riembn.evidence.claims import CLAIMS, CONTRADICTED, NOT_TESTED, SUPPORTED, UNDECIDED, judge
from riembn.experiment import Record, Store, preset
from riembn.experiment.record import COLUMNS

RECORDS = Path(__file__).resolve().parents[2] / "book" / "records"
SPREAD = [0.0, 0.1, -0.1, 0.05, -0.05]


def made_up(method="sgd", seed=0, *, test_error=10.0, train_loss=1.0, test_loss=(1.0,), **fields):
    """A run that nobody trained; the last losses given are those of the epochs that are left."""
    config = preset(f"vgg-11/digits/{method}", seed=seed, **fields)
    epochs = config.epochs
    columns = {name: [0.5] * epochs for name in COLUMNS}
    rates = [config.lr * config.drop_factor ** sum(drop <= e for drop in config.drops) for e in range(epochs)]
    columns |= {"epoch": list(range(1, epochs + 1)), "step": [1000 * e for e in range(1, epochs + 1)]}
    columns |= {"current_lr": rates, "train_loss": [train_loss] * epochs, "test_error": [test_error] * epochs}
    columns |= {"test_loss": [*test_loss, *[test_loss[-1]] * (epochs - len(test_loss))]}
    return Record(config=config, status="finished", columns=columns)


def diverged(method, seed):
    config = preset(f"vgg-11/digits/{method}", seed=seed)
    return Record(config=config, status="diverged", diverged_step=1, columns={name: [] for name in COLUMNS})


def said(key, records):
    frame = pandas.concat([record.frame() for record in records], ignore_index=True)
    (verdict,) = [verdict for verdict in judge(frame) if verdict.key == key]
    return verdict


def against_sgd(method, gap, seeds=5, value="test_error", at=10.0, **fields):
    runs = [made_up(seed=s, **{value: at}, **fields) for s in range(seeds)]
    return runs + [made_up(method, s, **{value: at + gap + SPREAD[s]}, **fields) for s in range(seeds)]


@pytest.mark.parametrize(
    ("key", "method", "value"),
    [
        ("C1", "sgd-g", "test_error"),
        ("C2", "adam-g", "test_error"),
        ("C3", "sgd-g", "train_loss"),
        ("P2", "psi-sgd", "train_loss"),
        ("P3", "psi-sgd", "test_error"),
    ],
)
def test_methods_are_compared_with_sgd(key, method, value):
    for gap, expected in ((-1.0, SUPPORTED), (1.0, CONTRADICTED), (0.01, UNDECIDED)):
        verdict = said(key, against_sgd(method, gap, value=value))
        assert verdict.verdict == expected
        (found,) = verdict.findings
        assert found.estimate == pytest.approx(gap) and found.n == 5
        assert found.low < gap < found.high and found.low == pytest.approx(2 * gap - found.high)


def test_every_cell_has_to_support_and_one_can_contradict():
    better, worse, nothing = (
        against_sgd("sgd-g", gap, epochs=e) for gap, e in ((-1.0, 4), (1.0, 5), (0.01, 6))
    )
    assert said("C1", better + nothing).verdict == UNDECIDED
    assert said("C1", better + worse).verdict == CONTRADICTED
    longer = against_sgd("sgd-g", -1.0, epochs=8)
    assert said("C1", better + longer).verdict == SUPPORTED
    assert len(said("C1", better + longer).findings) == 2


def test_too_little_is_not_tested_and_says_so():
    assert all(verdict.verdict == NOT_TESTED for verdict in judge(pandas.DataFrame()))
    one = said("C1", against_sgd("sgd-g", -1.0, seeds=1))
    assert one.verdict == NOT_TESTED and "1 seed(s) in common; two are needed" in one.note
    apart = [made_up(seed=s) for s in (0, 1)] + [made_up("sgd-g", s, test_error=1.0) for s in (2, 3)]
    assert said("C1", apart).verdict == NOT_TESTED
    assert said("C1", [made_up(seed=s) for s in range(5)]).verdict == NOT_TESTED
    other = [made_up("sgd-g", s, test_error=1.0, lr=0.3) for s in range(5)]  # not what the release set
    assert said("C1", [made_up(seed=s) for s in range(5)] + other).verdict == NOT_TESTED


def test_only_seeds_that_both_have_are_compared():
    runs = against_sgd("sgd-g", -1.0) + [made_up(seed=s, test_error=99.0) for s in (5, 6)]
    (found,) = said("C1", runs).findings
    assert found.n == 5 and found.estimate == pytest.approx(-1.0)


def test_what_does_not_hold_after_correction_is_undecided():
    # One comparison of p = 0.02, and two more beside it.
    gaps = [-0.20, -0.40, -0.28, -0.10, -0.02]
    runs = [made_up(seed=s) for s in range(5)]
    runs += [made_up("sgd-g", s, test_error=10 + gap) for s, gap in enumerate(gaps)]
    assert said("C1", runs).verdict == SUPPORTED
    for method in ("adam-g", "psi-sgd"):
        runs += [made_up(method, s, test_error=10 + spread) for s, spread in enumerate(SPREAD)]
    verdict = said("C1", runs)
    assert verdict.verdict == UNDECIDED and "supported before it" in verdict.findings[0].note


def test_two_seeds_that_differ_alike_decide_nothing():
    runs = [made_up(seed=s) for s in range(2)] + [made_up("sgd-g", s, test_error=9.0) for s in range(2)]
    (found,) = said("C1", runs).findings
    assert (found.estimate, found.n, found.verdict) == (-1.0, 2, UNDECIDED)


def test_only_the_releases_momentum_of_the_rest_is_compared():
    other = [made_up("sgd-g", s, test_error=1.0, rest_momentum=0.5) for s in range(5)]
    (found,) = said("C1", against_sgd("sgd-g", -1.0) + other).findings
    assert found.estimate == pytest.approx(-1.0) and found.n == 5


def test_diverged_run_counts_as_guessing_and_has_no_loss():
    runs = [made_up(seed=s, test_error=10.0) for s in range(1, 5)] + [diverged("sgd", 0)]
    runs += [made_up("sgd-g", s, test_error=10.0) for s in range(5)]
    (found,) = said("C1", runs).findings
    assert found.estimate == pytest.approx(-80 / 5)
    loss = said("C3", runs)
    assert loss.verdict == NOT_TESTED and "a run diverged" in loss.note


@pytest.mark.parametrize(
    ("key", "field", "baseline", "tested", "sign"),
    [("C5", "grad_clip", 0.1, None, 1), ("C6", "alpha", 0.0, 0.1, -1)],
)
def test_ablations_are_compared_at_each_rate(key, field, baseline, tested, sign):
    def at(value, error, lr):
        return [
            made_up("sgd-g", s, test_error=error + SPREAD[s] * (value == tested), lr=lr, **{field: value})
            for s in range(5)
        ]

    for gap, expected in ((1.0, SUPPORTED), (-1.0, CONTRADICTED), (0.01, UNDECIDED)):
        slow = at(baseline, 10.0, 0.2) + at(tested, 10.0 + sign * gap, 0.2)
        verdict = said(key, slow)
        assert verdict.verdict == expected and verdict.findings[0].estimate == pytest.approx(sign * gap)
        both = slow + at(baseline, 20.0, 2.0) + at(tested, 20.0 + sign, 2.0)
        assert [finding.where.split(",")[0] for finding in said(key, both).findings] == [
            verdict.findings[0].where.split(",")[0],
            verdict.findings[0].where.split(",")[0].replace("0.2", "2"),
        ]
    assert said(key, at(baseline, 10.0, 0.2)).verdict == NOT_TESTED


def test_plateaus_need_a_rise_under_sgd():
    fields = {"epochs": 6, "drops": (2, 4)}

    def runs(method, rise):
        spread = [0.1 * SPREAD[(s + len(method)) % 5] for s in range(5)]
        losses = [(1.0, 1.0, 0.5, 0.5 + rise + spread[s], 0.4, 0.4) for s in range(5)]
        return [made_up(method, s, test_loss=loss, **fields) for s, loss in enumerate(losses)]

    flat = said("C4", runs("sgd", -0.2) + runs("sgd-g", -0.4))
    assert flat.verdict == NOT_TESTED and "not seen under SGD" in flat.note
    gone = said("C4", runs("sgd", 0.2) + runs("sgd-g", 0.0) + runs("adam-g", 0.5))
    assert gone.verdict == CONTRADICTED
    found = {
        tuple(finding.where.split(", ")[0].split(" minus SGD after ")): finding for finding in gone.findings
    }
    assert {key: finding.verdict for key, finding in found.items()} == {
        ("SGD-G", "drop 1"): SUPPORTED,
        ("SGD-G", "drop 2"): UNDECIDED,
        ("Adam-G", "drop 1"): CONTRADICTED,
        ("Adam-G", "drop 2"): UNDECIDED,
    }
    assert found["SGD-G", "drop 1"].estimate == pytest.approx(-0.2)


def test_balance_is_tested_once_it_is_reached():
    config = preset("vgg-11/digits/sgd")
    predicted = math.sqrt(2 * config.lr * config.weight_decay / (1 + config.momentum))

    def runs(factor, steps, lr=config.lr):
        records = []
        for seed in range(3):
            record = made_up(seed=seed, lr=lr)
            angles = [predicted * factor * (1 + 0.01 * SPREAD[seed])] * config.epochs
            columns = {**record.columns, "angle": angles, "step": [steps * e for e in range(1, 5)]}
            records.append(Record(config=record.config, status="finished", columns=columns))
        return records

    assert said("C8", runs(1.02, 5000)).verdict == SUPPORTED
    assert said("C8", runs(1.5, 5000)).verdict == CONTRADICTED
    short = said("C8", runs(1.0, 100))
    assert short.verdict == NOT_TESTED and "the balance takes 3 T" in short.note
    both = said("C8", runs(1.0, 100, lr=config.lr / 10) + runs(1.02, 5000))
    assert both.verdict == SUPPORTED and "at rate 0.01, " in both.note and len(both.findings) == 1


def test_verdicts_on_the_committed_records_are_the_chapters():
    frame = Store(RECORDS).frame()
    found = {verdict.key: verdict for verdict in judge(frame)}

    def runs(method, seeds, **fields):
        digests = [
            preset(f"vgg-13/cifar10/{method}", "laptop", seed=seed, **fields).digest() for seed in seeds
        ]
        return stats.at_end(frame[frame["digest"].isin(digests)])

    def agree(finding, row):
        for name, theirs in (("estimate", "difference"), ("low", "low"), ("high", "high"), ("n", "n")):
            assert getattr(finding, name) == pytest.approx(row[theirs])
        assert f"p = {row['p_holm']:.2g} " in finding.note

    methods = pandas.concat([runs(m, range(5)) for m in ("sgd", "sgd-g", "adam-g", "psi-sgd")])
    table = stats.compare(methods, by="method", baseline="sgd").set_index("method")
    for key, method in (("C1", "sgd-g"), ("C2", "adam-g"), ("P3", "psi-sgd")):
        (finding,) = found[key].findings
        agree(finding, table.loc[method])

    alphas = [runs(m, range(3), alpha=a) for m in ("sgd-g", "adam-g") for a in (0.0, 0.01, 0.1, 1.0)]
    table = stats.compare(pandas.concat(alphas), by="alpha", baseline=0.0, within="method")
    rows = table[table["alpha"] == 0.1].set_index("method")
    for method, name in (("sgd-g", "SGD-G"), ("adam-g", "Adam-G")):
        (finding,) = [f for f in found["C6"].findings if f.where.startswith(name)]
        agree(finding, rows.loc[method])

    clips = [
        runs(m, range(3), grad_clip=v).assign(curve=m)
        for m in ("sgd-g", "adam-g")
        for v in (0.01, 0.03, 0.1, 0.3, None)
    ]
    clips += [
        runs("sgd-g", range(3), grad_clip=v, lr=2.0).assign(curve="fast") for v in (0.03, 0.1, 0.3, None)
    ]
    table = stats.compare(pandas.concat(clips), by="grad_clip", baseline=0.1, within="curve")
    rows = table[table["grad_clip"] == math.inf].set_index("curve")
    for curve, start in (
        ("sgd-g", "SGD-G at rate 0.2"), ("adam-g", "Adam-G"), ("fast", "SGD-G at rate 2 ")
    ):  # fmt: skip
        (finding,) = [f for f in found["C5"].findings if f.where.startswith(start)]
        agree(finding, rows.loc[curve])


def test_report_prints_every_claim(tmp_path, capsys):
    store = Store(tmp_path)
    for record in against_sgd("sgd-g", -1.0):
        store.put(record)
    assert main(["report", "--claims", "--store", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(CLAIMS)
    assert lines[0].startswith("C1  SUPPORTED (1 of 1 comparisons): SGD-G ends with a lower test error")
    assert "n = 5: supported" in lines[1]
    assert main(["report", "--store", str(tmp_path)]) == 0
    (one, two) = capsys.readouterr().out.splitlines()
    assert (
        one.startswith("vgg-11/digits/sgd-g") and "n = 5  mean 9.00 % (8." in one and "median 9.00 %" in one
    )
    assert "mean 10.00 % (10.00 to 10.00)" in two
