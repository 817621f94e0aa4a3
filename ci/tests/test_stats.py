"""Statistics over seeds: intervals that cover, differences seed by seed, nothing computed from a gap."""

import numpy
import pandas
import pytest
import scipy.stats

from riembn.evidence import stats


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
    assert (found.kind, found.n, found.estimate) == ("t", 3, 2.0)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_interval_of_three_seeds_covers_where_a_bootstrap_does_not():
    samples = numpy.random.default_rng(0).normal(size=(400, 3))
    found = [stats.interval(list(sample)) for sample in samples]
    covered = numpy.mean([f.low < 0 < f.high for f in found])
    resampled = scipy.stats.bootstrap(
        (samples,), numpy.mean, axis=1, n_resamples=999, method="percentile", rng=numpy.random.default_rng(1)
    ).confidence_interval
    covered_by_bootstrap = numpy.mean((resampled.low < 0) & (resampled.high > 0))
    assert covered > 0.92
    assert covered_by_bootstrap < 0.85


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_many_values_are_resampled_with_a_seed(statistic):
    values = list(numpy.random.default_rng(0).normal(size=20))
    found = stats.interval(values, statistic=statistic)
    assert found == stats.interval(values, statistic=statistic)
    assert found.kind == "bootstrap" and found.low < found.estimate < found.high
    assert found.estimate == getattr(numpy, statistic)(values)
    assert stats.interval(values, confidence=0.5).low > stats.interval(values).low


@pytest.mark.parametrize("values", [[1.0], [], [1.0, float("nan")]])
def test_interval_refuses_what_has_no_spread(values):
    with pytest.raises(ValueError, match="give two or more finite numbers"):
        stats.interval(values)


def test_summary_has_a_row_a_group(two_methods):
    table = stats.summarize(two_methods, by="method").set_index("method")
    assert table.loc["sgd", "median"] == 6.0
    assert table.loc["sgd-g", "mean"] == pytest.approx(5.5)
    assert list(table["n"]) == [3, 3] and list(table["interval"]) == ["t", "t"]
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
    # Three of three seeds say little: Clopper and Pearson's interval from 29 %.
    assert (row["improved"], row["improved_high"]) == (1.0, 1.0)
    assert row["improved_low"] == pytest.approx(0.025 ** (1 / 3))


def test_equal_results_are_no_improvement():
    frame = pandas.concat([runs([1.0, 2.0]), runs([1.0, 2.0], method="sgd-g")])
    (row,) = stats.compare(frame, by="method", baseline="sgd").to_dict("records")
    assert (row["difference"], row["improved"], row["p"]) == (0.0, 0.5, 1.0)


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
    assert row["difference"] < 0 and row["improved"] == 1.0
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
