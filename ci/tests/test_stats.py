"""Statistics over seeds: intervals that cover, differences seed by seed, nothing computed from a gap."""

import math

import numpy
import pandas
import pytest
import scipy.stats

from riembn.evidence import stats
from riembn.evidence.intervals import difference
from riembn.evidence.verdicts import Question, settle


def runs(values, **fields):
    """One row a run: values of test_error by seed."""
    rows = [
        {"seed": seed, "test_error": value, "method": "sgd", **fields} for seed, value in enumerate(values)
    ]
    return pandas.DataFrame(rows)


@pytest.fixture
def two_methods():
    return pandas.concat([runs([5.0, 6.0, 7.0], method="sgd"), runs([4.5, 5.8, 6.2], method="sgd-g")])


def test_three_values_have_students_interval():
    found = stats.interval([1.0, 2.0, 3.0])
    low, high = scipy.stats.t.interval(0.95, 2, loc=2.0, scale=1 / numpy.sqrt(3))
    assert (found.n, found.estimate) == (3, 2.0)
    assert (found.low, found.high) == pytest.approx((low, high))


@pytest.mark.parametrize("n", [3, 5, 10, 20])
def test_interval_of_a_mean_covers_at_every_number_of_seeds(n):
    samples = numpy.random.default_rng(n).normal(size=(2000, n))
    found = [stats.interval(list(sample)) for sample in samples]
    covered = numpy.mean([f.low < 0 < f.high for f in found])
    assert abs(covered - 0.95) < 0.015  # three standard errors


@pytest.mark.parametrize(("n", "most"), [(3, 0.80), (10, 0.92), (20, 0.94)])
def test_bootstrap_of_a_mean_would_not_cover(n, most):
    samples = numpy.random.default_rng(0).normal(size=(2000, n))
    resampled = scipy.stats.bootstrap(
        (samples,), numpy.mean, axis=1, n_resamples=499, method="percentile", rng=numpy.random.default_rng(1)
    ).confidence_interval
    assert numpy.mean((resampled.low < 0) & (resampled.high > 0)) < most


def test_interval_and_p_value_never_contradict_each_other():
    rng = numpy.random.default_rng(0)
    for _ in range(400):
        values, baseline = rng.normal(0.5, size=12), rng.normal(size=12)
        found = difference(list(values), list(baseline))
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


# In paired standard deviations: rows n, columns corrected for 1, 3, 6 and 11 comparisons.
@pytest.mark.parametrize(
    ("n", "expected"),
    [(3, (3.26, 5.67, 8.02, 10.9)), (5, (1.68, 2.29, 2.76, 3.23)), (10, (1.00, 1.22, 1.37, 1.51))],
)
def test_smallest_detectable_effect_of_a_design(n, expected):
    found = [stats.smallest_detectable(n, comparisons=m) for m in (1, 3, 6, 11)]
    assert found == pytest.approx(expected, rel=5e-3)
    assert stats.smallest_detectable(n, 0.3) == pytest.approx(0.3 * found[0])
    # The half-width of the interval, often called what can be seen, is found about every second time.
    assert scipy.stats.t.ppf(0.975, n - 1) / n**0.5 < found[0]


def test_smallest_detectable_effect_is_found_four_times_in_five():
    n, m = 5, 3
    effect = stats.smallest_detectable(n, comparisons=m)
    samples = numpy.random.default_rng(0).normal(effect, size=(4000, n))
    found = scipy.stats.ttest_1samp(samples, 0.0, axis=1).pvalue < 0.05 / m
    assert abs(found.mean() - 0.8) < 0.02


@pytest.mark.parametrize("design", [{"n": 1}, {"n": 3, "comparisons": 0}, {"n": 3, "power": 1.0}])
def test_impossible_design_is_refused(design):
    with pytest.raises(ValueError, match="give n of 2 or more, comparisons of 1 or more, power between 0.05"):
        stats.smallest_detectable(**design)


@pytest.mark.parametrize("values", [[1.0], [], [1.0, float("nan")]])
def test_interval_refuses_what_has_no_spread(values):
    with pytest.raises(ValueError, match="give two or more finite numbers"):
        stats.interval(values)


def test_summary_has_a_row_a_group(two_methods):
    table = stats.summarize(two_methods, by="method").set_index("method")
    assert table.loc["sgd", "median"] == 6.0
    assert table.loc["sgd-g", "mean"] == pytest.approx(5.5)
    assert list(table["n"]) == [3, 3]
    assert (table["low"] < table["mean"]).all() and (table["mean"] < table["high"]).all()


def test_groups_may_be_told_apart_by_no_clipping():
    frame = pandas.concat([runs([1.0, 2.0], grad_clip=numpy.inf), runs([3.0, 4.0], grad_clip=0.1)])
    assert set(stats.summarize(frame, by="grad_clip")["grad_clip"]) == {numpy.inf, 0.1}


def test_missing_seed_is_refused(two_methods):
    gap = two_methods[~((two_methods["method"] == "sgd-g") & (two_methods["seed"] == 1))]
    for act in (
        lambda: stats.summarize(gap, by="method"),
        lambda: stats.compare(gap, by="method", baseline="sgd"),
        lambda: stats.summarize(two_methods, by="method", seeds=range(4)),
    ):
        with pytest.raises(ValueError, match=r"method=\S+ has no run of seed \d; sweep it first"):
            act()


def test_group_that_mixes_configurations_is_refused(two_methods):
    with pytest.raises(ValueError, match="several runs of seed 0; take one epoch of each"):
        stats.summarize(two_methods.assign(dataset="digits"), by="dataset")


def test_missing_value_or_column_is_refused(two_methods):
    with pytest.raises(ValueError, match="no column colour; the frame has"):
        stats.summarize(two_methods, by="colour")
    holed = two_methods.assign(angle=[0.1, None, 0.2, 0.1, 0.1, 0.1])
    with pytest.raises(ValueError, match="method=sgd has no angle for seed 1"):
        stats.summarize(holed, by="method", value="angle")


def test_difference_is_taken_seed_by_seed(two_methods):
    shuffled = two_methods.sample(frac=1, random_state=0)
    (row,) = stats.compare(shuffled, by="method", baseline="sgd").to_dict("records")
    paired = scipy.stats.ttest_rel([4.5, 5.8, 6.2], [5.0, 6.0, 7.0])
    assert row["method"] == "sgd-g" and row["n"] == 3
    assert row["difference"] == pytest.approx(-0.5)
    assert row["p"] == pytest.approx(paired.pvalue)
    ends = paired.confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx((ends.low, ends.high))
    assert row["sd"] == pytest.approx(numpy.std([-0.5, -0.2, -0.8], ddof=1))
    assert row["detectable"] == pytest.approx(stats.smallest_detectable(3, row["sd"]))


def test_equal_results_are_undecided():
    frame = pandas.concat([runs([1.0, 2.0]), runs([1.0, 2.0], method="sgd-g")])
    (row,) = stats.compare(frame, by="method", baseline="sgd").to_dict("records")
    assert (row["difference"], row["p"], row["verdict"]) == (0.0, 1.0, "undecided")


@pytest.mark.parametrize(
    ("baseline", "better"),
    [
        ([2.777778, 3.055556], [2.5, 2.777778]),  # one image of 360 fewer, in the seven digits of a record
        ([5.0, 6.0, 7.0], [4.0, 5.0, 6.0]),
        ([50.1] * 12, [49.9] * 12),
    ],
)
def test_equal_differences_do_not_say_how_far_they_spread(baseline, better):
    frame = pandas.concat([runs(baseline), runs(better, method="sgd-g")])
    (row,) = stats.compare(frame, by="method", baseline="sgd").to_dict("records")
    assert row["difference"] < 0 and row["detectable"] == numpy.inf and row["verdict"] == "undecided"
    assert (row["low"], row["high"], row["p"], row["p_holm"]) == (-numpy.inf, numpy.inf, 1.0, 1.0)


def test_table_is_corrected_as_a_whole():
    rng = numpy.random.default_rng(0)
    frame = pandas.concat(
        runs(rng.normal(size=5), method=method, dataset=dataset)
        for method in ("sgd", "sgd-g", "adam-g")
        for dataset in ("a", "b")
    )
    table = stats.compare(frame, by="method", baseline="sgd", within="dataset")
    assert len(table) == 4
    assert list(table["p_holm"]) == stats.holm(list(table["p"]))
    assert (table["p_holm"] >= table["p"]).all()


def gaps(**differences):
    """Twelve seeds of SGD at 10, and of other methods at these mean differences from it, spread by 0.1."""
    spread = numpy.linspace(-1, 1, 12) * 0.15
    of_methods = [runs(10 + gap + spread, method=method) for method, gap in differences.items()]
    return pandas.concat([runs([10.0] * 12), *of_methods])


def test_only_what_a_claim_asks_is_corrected_and_decided():
    frame = gaps(a=-0.1, b=0.0, c=0.0)
    alone = stats.compare(frame[frame["method"].isin(["sgd", "a"])], by="method", baseline="sgd")
    asked = stats.compare(frame, by="method", baseline="sgd", asked={"method": ["a"]}).set_index("method")
    every = stats.compare(frame, by="method", baseline="sgd").set_index("method")
    assert asked.loc["a", "p_holm"] == asked.loc["a", "p"] == alone["p_holm"][0]
    assert every.loc["a", "p_holm"] == pytest.approx(3 * asked.loc["a", "p"])
    assert every.loc["a", "detectable"] > asked.loc["a", "detectable"]
    assert list(asked["verdict"]) == ["better", "not asked", "not asked"]
    assert asked.loc[["b", "c"], ["p_holm", "detectable"]].isna().all(axis=None)
    with pytest.raises(ValueError, match="no comparison is asked by"):
        stats.compare(frame, by="method", baseline="sgd", asked={"method": ["d"]})


def test_verdicts_of_comparisons():
    frame = gaps(better=-0.5, worse=0.5, equal=0.01, unknown=0.05)
    table = stats.compare(frame, by="method", baseline="sgd", margin=0.1).set_index("method")
    said = ["better", "worse", "equivalent within 0.1", "undecided"]
    assert list(table["verdict"]) == said
    more = stats.compare(frame, by="method", baseline="sgd", margin=0.1, less_is_better=False)
    assert list(more["verdict"]) == ["worse", "better", *said[2:]]
    assert list(more["difference"]) == list(table["difference"])
    without = stats.compare(frame, by="method", baseline="sgd").set_index("method")
    assert without.loc["equal", "verdict"] == "undecided"


def test_what_does_not_hold_after_correction_is_undecided():
    several = {f"m{place}": 0.0 for place in range(8)}
    frame = gaps(first=-0.08, **several)
    table = stats.compare(frame, by="method", baseline="sgd").set_index("method")
    assert table.loc["first", "p"] < 0.05 < table.loc["first", "p_holm"]
    assert table.loc["first", "verdict"] == "undecided"


def test_false_verdicts_are_as_rare_as_stated():
    """Three comparisons without an effect and two at the very margin, where all that is true is found."""
    rng = numpy.random.default_rng(0)
    questions = [Question("difference", 0.5)] * 5
    said_different = said_equivalent = 0
    for _ in range(200):
        samples = rng.normal([0, 0, 0, 0.5, 0.5], 0.1, size=(6, 5))
        said = [s.verdict for s in settle([difference(list(x), [0.0] * 6) for x in samples.T], questions)]
        said_different += any(verdict in ("better", "worse") for verdict in said[:3])
        said_equivalent += any(verdict in ("better", "equivalent within 0.5") for verdict in said[3:])
    most = 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5
    assert said_different / 200 < most and said_equivalent / 200 < most


def test_two_looks_decide_wrongly_no_more_often_than_one():
    """Without an effect, decided at ten seeds or else at twenty: too often, unless both looks are counted."""
    rng, tries = numpy.random.default_rng(0), 2000
    wrong = {1: 0, 2: 0}
    for values in rng.normal(size=(tries, 20)):
        looks = [difference(list(values[:n]), [0.0] * n) for n in (10, 20)]
        for counted in wrong:
            said = [settle([d], [Question(looks=counted)])[0].verdict for d in looks]
            wrong[counted] += said != ["undecided"] * 2
    spread = 3 * (0.05 * 0.95 / tries) ** 0.5
    assert wrong[1] / tries > 0.05 + spread > wrong[2] / tries


def test_looks_count_in_the_p_value_and_in_what_can_be_found():
    frame = gaps(first=-0.08, second=0.02)
    once, twice = (
        stats.compare(frame, by="method", baseline="sgd", looks=looks).set_index("method") for looks in (1, 2)
    )
    assert twice.loc["first", "p_holm"] == pytest.approx(2 * once.loc["first", "p_holm"])
    assert (twice["detectable"] > once["detectable"]).all() and (twice["low"] == once["low"]).all()
    with pytest.raises(ValueError, match="looks=0 is not accepted; give a whole number of 1 or more"):
        stats.compare(frame, by="method", baseline="sgd", looks=0)


@pytest.mark.parametrize(
    ("asks", "shift", "verdict"),
    [
        ("equivalence", 0.01, "equivalent within 0.05"),
        ("equivalence", -0.2, "different"),
        ("equivalence", 0.05, "undecided"),
        ("not worse", -0.2, "not worse"),
        ("not worse", 0.01, "not worse"),
        ("not worse", 0.2, "worse"),
        ("not worse", 0.05, "undecided"),
    ],
)
def test_questions_about_a_margin(asks, shift, verdict):
    values = [shift + 0.01 * step for step in (-1, 0, 1, 0)]
    (settled,) = settle([difference(values, [0.0] * 4)], [Question(asks, 0.05)])
    assert settled.verdict == verdict


def test_question_about_a_margin_needs_one():
    for wrong in ({"asks": "equivalence"}, {"margin": 0.0}):
        with pytest.raises(ValueError, match="give a number above 0"):
            Question(**wrong)


@pytest.mark.parametrize(
    ("verdicts", "claimed", "expected"),
    [
        (["better"] * 3, "better", "supported"),
        (["better"] * 10 + ["worse"], "better", "mixed"),  # one cell does not override ten
        (["better", "equivalent within 0.3"], "better", "mixed"),
        (["better", "undecided"], "better", "supported in part"),
        (["worse", "undecided"], "better", "not supported"),
        (["worse", "equivalent within 0.3"], "better", "not supported"),
        (["worse", "not asked"], "worse", "supported"),
        (["equivalent within 0.3"] * 2, "better", "equivalent within 0.3"),
        (["equivalent within 0.3", "undecided"], "better", "undecided"),
        (["equivalent within 0.05"], "equivalent", "supported"),
        (["different"], "equivalent", "not supported"),
        (["undecided"] * 2, "better", "undecided"),
    ],
)
def test_claims_are_decided_by_all_their_comparisons(verdicts, claimed, expected):
    assert stats.decide(verdicts, claimed) == expected
    assert stats.decide(verdicts[::-1], claimed) == expected


def test_comparison_needs_its_baseline_and_something_else(two_methods):
    with pytest.raises(ValueError, match="no runs of the baseline method='adam-g'"):
        stats.compare(two_methods, by="method", baseline="adam-g")
    with pytest.raises(ValueError, match="method has no other value"):
        stats.compare(two_methods[two_methods["method"] == "sgd"], by="method", baseline="sgd")


def test_holm_known_example():
    # Worked by hand: 0.01*4, then 0.02*3, max(0.06, 0.03*2), max(0.06, 0.04*1).
    assert stats.holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []
    with pytest.raises(ValueError, match="not all p-values"):
        stats.holm([0.5, float("nan")])


def test_end_of_a_diverged_run_must_be_given_a_value():
    frame = pandas.DataFrame(
        {
            "digest": ["a", "a", "b"],
            "epoch": [1, 2, 0],
            "status": ["finished", "finished", "diverged"],
            "test_error": [9.0, 8.0, None],
        }
    )
    with pytest.raises(ValueError, match=r"1 run\(s\) diverged, e.g. b; leave them out knowingly"):
        stats.at_end(frame)
    assert list(stats.at_end(frame, diverged={"test_error": 90.0})["test_error"]) == [8.0, 90.0]
    assert list(stats.at_end(frame[frame["status"] == "finished"])["epoch"]) == [2]
    with pytest.raises(ValueError, match="no runs"):
        stats.at_end(frame.iloc[:0])


@pytest.mark.parametrize(
    ("value", "low", "high", "said"),
    [
        (0.491, 0.2222, 0.7602, "+0.49 (+0.22 to +0.76)"),
        (-0.00619, -0.0124, 6.4e-6, "-0.0062 (-0.0124 to +0.0000)"),
        (23.7, 10.2, 37.2, "+24 (+10 to +37)"),
        (120.4, -300.0, 540.8, "+120 (-300 to +541)"),
        (2.0, -math.inf, math.inf, "+2 (-inf to +inf)"),
    ],
)
def test_a_difference_is_spelled_to_two_digits_of_its_interval(value, low, high, said):
    assert stats.spelled(value, low, high) == said
    assert stats.spelled(value, low, high, "points") == said.replace(" ", " points ", 1)
