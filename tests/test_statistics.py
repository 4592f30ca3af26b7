"""Intervals against analytic errors, and distances against closed forms and the libraries."""

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twinbench.judges.distances import frechet, frechet_draws, frechet_rows, kernel_distance, kernel_rows
from twinbench.statistics import (
    DRAWS,
    Metric,
    bootstrap,
    compare,
    evaluate,
    holm,
    keys_needed,
    over_seeds,
    percentiles,
    standard_error,
)

SCORE = Metric("score")


def interval(metric, runs, draws=DRAWS):
    return percentiles(over_seeds(bootstrap(metric, runs, draws)))


def difference(metric, a_runs, b_runs, draws=DRAWS):
    both = bootstrap(metric, [*a_runs, *b_runs], draws)
    value = np.mean([evaluate(metric, run) for run in a_runs]) - np.mean([evaluate(metric, run) for run in b_runs])
    return compare(float(value), both[:, : len(a_runs)], both[:, len(a_runs) :])


def rows(values, tag="a", split="evaluation"):
    """One row a copy: values [keys] or [keys, copies]."""
    values = np.asarray(values, float).reshape(len(values), -1)
    return [
        {"key": f"{split}/{tag}/{k:03d}", "copy": c, "tag": tag, "split": split, "score": float(v)}
        for k, row in enumerate(values)
        for c, v in enumerate(row)
    ]


# ---- values ----------------------------------------------------------------------------------------------------------


def test_a_metric_is_the_plain_mean_of_its_strata_whatever_their_size():
    items = rows([1, 1, 1, 1, 1, 1], "a") + rows([0, 1], "b")
    assert evaluate(SCORE, items) == pytest.approx(0.75)


def test_a_metric_reads_only_the_rows_that_match():
    items = rows([1, 0], "a") + rows([0, 0], "b") + rows([1, 1], "a", "heldout")
    assert evaluate(Metric("score", {"split": "evaluation"}), items) == pytest.approx(0.25)
    assert evaluate(Metric("score", {"split": "evaluation", "tag": "a"}), items) == pytest.approx(0.5)
    assert evaluate(Metric("score", {"split": "heldout"}), items) == 1.0


def test_no_rows_or_a_missing_value_give_nan():
    assert math.isnan(evaluate(SCORE, []))
    assert math.isnan(standard_error(SCORE, []))
    broken = [*rows([0.0, 1.0]), {"key": "x", "tag": "a", "score": None}]
    assert math.isnan(evaluate(SCORE, broken))
    assert all(map(math.isnan, interval(SCORE, [broken], draws=100)))
    assert math.isnan(difference(SCORE, [broken], [broken], draws=100).p)


def test_a_row_without_the_column_or_a_key_in_two_strata_is_an_error():
    with pytest.raises(ValueError, match="has no 'other'"):
        evaluate(Metric("other"), rows([1.0]))
    with pytest.raises(ValueError, match="two strata"):
        evaluate(SCORE, [{"key": "k", "tag": "a", "score": 1}, {"key": "k", "tag": "b", "score": 1}])


# ---- intervals -------------------------------------------------------------------------------------------------------


def test_standard_error_is_the_analytic_one_of_a_stratified_mean():
    rng = np.random.default_rng(0)
    strata = [rng.normal(0, s, n) for s, n in ((1.0, 60), (3.0, 30))]
    items = [row for name, x in zip("ab", strata, strict=True) for row in rows(x, name)]
    analytic = math.sqrt(sum(x.var() / len(x) for x in strata)) / 2
    assert standard_error(SCORE, items) == pytest.approx(analytic, rel=4 / math.sqrt(2 * 10_000))


def test_copies_of_a_prompt_go_together():
    x = np.random.default_rng(1).normal(size=50)
    once, twice = standard_error(SCORE, rows(x)), standard_error(SCORE, rows(np.stack([x, x], 1)))
    assert twice == pytest.approx(once)  # a second, equal copy is no evidence


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(300):
        low, high = interval(SCORE, [rows(rng.random(80) < 0.7)], draws=400)
        hits += low <= 0.7 <= high
    assert 0.90 <= hits / 300 <= 0.98


def test_seeds_that_differ_widen_the_interval():
    x = np.random.default_rng(3).normal(0, 0.1, 100)
    low, high = interval(SCORE, [rows(x)])
    wide_low, wide_high = interval(SCORE, [rows(x - 0.2), rows(x), rows(x + 0.2)])
    assert wide_high - wide_low > 3 * (high - low)
    same = interval(SCORE, [rows(x)] * 3)
    assert same == pytest.approx((low, high))


def test_the_order_of_rows_changes_nothing():
    items = rows(np.random.default_rng(4).random((30, 2)), "b") + rows(np.random.default_rng(5).random((20, 2)), "a")
    assert interval(SCORE, [items], draws=200) == pytest.approx(interval(SCORE, [items[::-1]], draws=200), abs=1e-12)


def test_a_bootstrap_of_1200_prompts_is_fast():
    items = [row for tag in "abcdef" for row in rows(np.random.default_rng(6).random((200, 2)) < 0.6, tag)]
    start = time.perf_counter()
    bootstrap(SCORE, [items] * 6)
    assert time.perf_counter() - start < 10  # about one second alone


# ---- differences -----------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12), st.integers(1, 3))
def test_identical_methods_differ_by_exactly_nothing(values, seeds):
    runs = [rows([v * (s + 1) for v in values]) for s in range(seeds)]
    d = difference(SCORE, runs, runs, draws=200)
    assert (d.value, d.low, d.high, d.p, d.real) == (0.0, 0.0, 0.0, 1.0, False)


def test_pairing_narrows_the_interval_of_methods_that_fail_on_the_same_prompts():
    rng = np.random.default_rng(7)
    hard = rng.normal(0, 1, 200)
    a, b = rows(hard + 0.1 + rng.normal(0, 0.1, 200)), rows(hard + rng.normal(0, 0.1, 200))
    d = difference(SCORE, [a], [b])
    unpaired = 2 * 1.96 * math.hypot(standard_error(SCORE, a), standard_error(SCORE, b))
    assert d.high - d.low < unpaired / 5
    assert d.real and d.p < 0.001 and d.low < d.value < d.high


def test_a_difference_changes_sign_with_its_order():
    rng = np.random.default_rng(8)
    a, b = ([rows(rng.random(40)) for _ in range(3)] for _ in range(2))
    ab, ba = difference(SCORE, a, b, draws=999), difference(SCORE, b, a, draws=999)
    assert (ab.value, ab.low, ab.high, ab.p) == pytest.approx((-ba.value, -ba.high, -ba.low, ba.p))


def test_p_of_the_truth_is_uniform_enough():
    rng = np.random.default_rng(9)
    p = [difference(SCORE, [rows(rng.normal(size=60))], [rows(rng.normal(size=60))], draws=400).p for _ in range(200)]
    assert np.mean(np.array(p) < 0.05) < 0.11
    assert 0.4 < np.mean(p) < 0.6


def test_other_prompts_cannot_be_compared():
    with pytest.raises(ValueError, match="different prompts"):
        difference(SCORE, [rows([1, 2, 3])], [rows([1, 2])])
    with pytest.raises(ValueError, match="different prompts"):
        interval(SCORE, [rows([1, 2]), []])


def test_unequal_numbers_of_seeds_can_be_compared():
    x = np.random.default_rng(10).random(50)
    d = difference(SCORE, [rows(x + 0.5), rows(x + 0.6)], [rows(x)], draws=500)
    assert d.value == pytest.approx(0.55) and (d.low, d.high) == pytest.approx((0.5, 0.6))


def test_holm_is_the_textbook_one_and_passes_nan_by():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    got = holm([0.02, float("nan"), 0.9])
    assert got[::2] == pytest.approx([0.04, 0.9]) and math.isnan(got[1])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_stands_between_no_correction_and_bonferroni(p):
    for raw, corrected in zip(p, holm(p), strict=True):
        assert raw <= corrected <= min(1.0, len(p) * raw) or corrected == pytest.approx(min(1.0, max(p)))


# ---- Frechet and kernel distances ------------------------------------------------------------------------------------


def exact(mean, cov, n, seed):
    """n points with exactly this mean and covariance (n - 1)."""
    z = np.random.default_rng(seed).normal(size=(n, len(mean)))
    z -= z.mean(0)
    z = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z, rowvar=False))).T
    return z @ np.linalg.cholesky(cov).T + mean


def test_frechet_is_the_closed_form_of_commuting_gaussians():
    v1, v2, m1, m2 = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 0.25]), np.zeros(3), np.array([1.0, -2.0, 0.5])
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    a, b = exact(m1, turn @ np.diag(v1) @ turn.T, 50, 1), exact(m2, turn @ np.diag(v2) @ turn.T, 70, 2)
    want = ((m1 - m2) ** 2).sum() + ((np.sqrt(v1) - np.sqrt(v2)) ** 2).sum()
    assert frechet(a, b) == pytest.approx(want, rel=1e-10)


def features(n=300, d=24, shift=0.3, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d))
    return rng.normal(size=(n, d)) @ mix + shift, rng.normal(size=(n + 20, d)) @ (mix + 0.3 * rng.normal(size=(d, d)))


@pytest.mark.filterwarnings("ignore")
def test_frechet_is_that_of_cleanfid_and_torchmetrics():
    a, b = features()
    fid = pytest.importorskip("cleanfid.fid")
    assert frechet(a, b) == pytest.approx(fid.fid_from_feats(a, b), rel=1e-6)
    image = pytest.importorskip("torchmetrics.image.fid")

    class Identity(torch.nn.Module):
        num_features = a.shape[1]

        def forward(self, x):
            return x.flatten(1)

    metric = image.FrechetInceptionDistance(feature=Identity()).set_dtype(torch.float64)
    for x, real in ((a, True), (b, False)):
        metric.update(torch.as_tensor(x), real=real)
    assert frechet(a, b) == pytest.approx(float(metric.compute()), rel=1e-4)


def test_frechet_of_equal_or_degenerate_features_is_zero_and_never_negative():
    a, _ = features(n=10, d=24)  # fewer points than dimensions
    assert 0 <= frechet(a, a) < 1e-4
    assert 0 <= frechet(np.ones((5, 3)), np.ones((6, 3))) < 1e-12
    with pytest.raises(ValueError, match="one d"):
        frechet(np.ones((5, 3)), np.ones((5, 4)))


def test_kernel_distance_is_the_double_loop():
    a, b = features(n=12, d=5)
    n, m, d = len(a), len(b), a.shape[1]

    def k(x, y):
        return (x @ y / d + 1) ** 3

    want = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    want += sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    want -= 2 * sum(k(x, y) for x in a for y in b) / (n * m)
    assert kernel_distance(a, b) == pytest.approx(want, rel=1e-12)


def test_kernel_distance_of_one_distribution_is_zero_on_average():
    rng = np.random.default_rng(0)
    values = [kernel_distance(rng.normal(size=(40, 4)), rng.normal(size=(50, 4))) for _ in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(200)
    assert min(values) < 0


def test_frechet_of_resampled_keys_keeps_the_features_of_a_key_together():
    x, reference = features(n=40, d=3)
    keys = [f"{i // 2:02d}" for i in range(40)]
    draws = frechet_draws(x, keys, reference, draws=5)
    rng = np.random.default_rng(0)
    for value in draws:
        picked = rng.integers(20, size=(1, 20))[0]
        again = np.concatenate([x[2 * k : 2 * k + 2] for k in picked])
        assert value == pytest.approx(frechet(again, reference), rel=1e-9)


def test_frechet_draws_of_two_methods_are_paired():
    rng = np.random.default_rng(0)
    base, reference = rng.normal(size=(200, 4)), rng.normal(size=(400, 4))
    keys = [str(i) for i in range(200)]
    near, far = base + 0.3, base + 0.4
    value = frechet(far, reference) - frechet(near, reference)
    d = compare(value, *(frechet_draws(x, keys, reference, draws=200)[:, None] for x in (far, near)))
    assert d.real and d.low < d.value < d.high
    order = rng.permutation(200)  # the order of rows is of no account
    same = frechet_draws(near[order], [keys[i] for i in order], reference, draws=50)
    assert same == pytest.approx(frechet_draws(near, keys, reference, draws=50), abs=1e-10)


def test_a_distance_is_the_mean_of_what_its_rows_say():
    for n, d in ((50, 4), (10, 24)):  # and with fewer rows than numbers
        a, b = features(n=n, d=d)
        rows = frechet_rows(a, b.mean(0), np.cov(b, rowvar=False))
        assert rows.mean() == pytest.approx(frechet(a, b), rel=1e-6) and len(rows) == n
        assert kernel_rows(a, b).mean() == pytest.approx(kernel_distance(a, b), rel=1e-12)
    with pytest.raises(ValueError, match="features of 24 numbers"):
        frechet_rows(a, np.zeros(3), np.eye(3))


def test_a_row_leaves_the_distance_by_what_its_own_weight_does():
    """To first order: one row more of 6,000."""
    a, b = features(n=300, d=3)
    told, many = frechet_rows(a, b.mean(0), np.cov(b, rowvar=False))[:10], np.repeat(a, 20, 0)
    moved = len(many) * np.array([frechet(np.concatenate([many, a[i : i + 1]]), b) for i in range(10)])
    assert np.abs((told - told.mean()) - (moved - moved.mean())).max() < 0.02 * told.std()


def test_a_row_says_its_own_kernels():
    a, b = features(n=30, d=3)
    told, mean = kernel_rows(a, b), np.array([((np.delete(a, i, 0) @ x / 3 + 1) ** 3).mean() for i, x in enumerate(a)])
    moved = 2 * mean - 2 * np.array([((b @ x / 3 + 1) ** 3).mean() for x in a])
    assert told - told.mean() == pytest.approx(moved - moved.mean(), rel=1e-9)


@pytest.mark.parametrize("n, d", [(200, 6), (40, 60)])
def test_the_spread_of_a_difference_by_rows_is_that_over_new_samples(n, d):
    """Also with fewer pictures than numbers, as of 1,000 pictures in Inception's features."""
    rng, scale = np.random.default_rng(0), np.arange(1, d + 1) ** -0.7
    mean, covariance = np.zeros(d), np.diag(scale**2)
    keys = [str(i) for i in range(n)]

    def pair():
        base, *own = rng.normal(size=(3, n, d)) * scale
        return (0.95 * base + 0.25 * own[0] + 0.15 * scale, 0.9 * base + 0.2 * own[1])

    def by_rows():
        a, b = (frechet_rows(x, mean, covariance) for x in pair())
        told = [[{"key": k, "score": v} for k, v in zip(keys, x, strict=True)] for x in (a, b)]
        draws = bootstrap(Metric("score"), told, draws=1000)
        return (draws[:, 0] - draws[:, 1]).std()

    true = np.std([np.subtract(*(frechet_rows(x, mean, covariance).mean() for x in pair())) for _ in range(200)])
    assert np.mean([by_rows() for _ in range(10)]) == pytest.approx(true, rel=0.15)


# ---- sample size -----------------------------------------------------------------------------------------------------


def test_the_needed_prompts_are_those_of_the_normal_formula():
    x = np.random.default_rng(0).normal(0.2, 1.0, 400)  # differences of 400 prompts
    draws = bootstrap(SCORE, [rows(x), rows(np.zeros(400))])
    want = ((1.959964 + 0.841621) * x.std() / x.mean()) ** 2
    assert keys_needed(float(x.mean()), draws[:, :1], draws[:, 1:], 400) == pytest.approx(want, rel=0.03)


def test_so_many_prompts_show_the_difference_four_times_in_five():
    rng = np.random.default_rng(1)
    a, b = (bootstrap(SCORE, [rows(x)]) for x in (rng.normal(0.5, 1.0, 300), np.zeros(300)))
    n = int(keys_needed(0.5, a, b, 300))
    shown = sum(
        difference(SCORE, [rows(rng.normal(0.5, 1.0, n))], [rows(np.zeros(n))], draws=300).real for _ in range(300)
    )
    assert 0.7 < shown / 300 < 0.9 and 25 < n < 40


def test_no_difference_is_never_shown_and_no_evidence_says_nothing():
    draws = bootstrap(SCORE, [rows([0.0, 1.0]), rows([1.0, 0.0])], draws=100)
    assert keys_needed(0.0, draws[:, :1], draws[:, 1:], 2) == math.inf
    assert math.isnan(keys_needed(0.1, draws[:, :1] * np.nan, draws[:, 1:], 2))
