"""Every number is a function of what it is for, and has the distribution that it claims."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from twinbench.objectives.times import split_roles
from twinbench.randomness import Rng, normal, permutation, request_noise, seed_of

SHAPE = (3, 2)
quick = settings(max_examples=100, deadline=None)
KEY = dict(seed=1, step=2, turn="student")


def rng(indices, total=16, **key):
    return Rng(**{**KEY, **key}, indices=indices, total=total, shape=SHAPE)


NUMBERS = {
    "normal": lambda r, name="a": r.normal(name),
    "uniform": lambda r, name="a": r.uniform(name),
    "beta": lambda r, name="a": r.beta(name, 2.0, 0.5),
}
kinds = pytest.mark.parametrize("numbers", NUMBERS.values(), ids=NUMBERS.keys())


@kinds
def test_numbers_belong_to_the_sample(numbers):
    whole = numbers(rng(range(16)))
    for held in ([3], [9, 0, 4], list(range(8, 16))):
        assert torch.equal(numbers(rng(held)), whole[held])
        assert torch.equal(numbers(rng(held, total=64)), whole[held])  # nor do they know the size of the batch
    again = rng(range(16))
    assert torch.equal(numbers(again), whole) and torch.equal(numbers(again), whole)  # nor what was drawn before
    assert len(whole.flatten().unique()) == whole.numel()  # and no two samples share them


@kinds
@pytest.mark.parametrize("key", [dict(seed=2), dict(step=3), dict(turn="critic")], ids=lambda key: next(iter(key)))
def test_numbers_change_with_every_part_of_the_key(numbers, key):
    assert (numbers(rng(range(16))) != numbers(rng(range(16), **key))).all()
    assert (numbers(rng(range(16))) != numbers(rng(range(16)), "b")).all()


def test_masked_numbers_are_those_of_the_rows():
    held = [5, 2, 11]
    where = torch.tensor([True, False, True])
    r = rng(held)
    assert torch.equal(r.normal("a", where), r.normal("a")[where])
    assert torch.equal(r.uniform("a", where), r.uniform("a")[where])
    assert torch.equal(r.beta("a", 2, 3, where), r.beta("a", 2, 3)[where])
    none = torch.zeros(3, dtype=torch.bool)
    assert r.normal("a", none).shape == (0, *SHAPE) and r.uniform("a", none).shape == (0,)


def test_parts_of_a_key_do_not_run_into_each_other():
    assert seed_of("ab", "c") != seed_of("a", "bc") and seed_of(1, 12) != seed_of(11, 2)
    assert all(0 <= seed_of(i) < 2**63 for i in range(100))


def test_normal_numbers_are_normal_and_independent():
    x = rng(range(2000), total=2000).normal("z").flatten(1)
    assert stats.kstest(x.flatten().numpy(), "norm").pvalue > 1e-3
    correlation = torch.corrcoef(x.T) - torch.eye(6)
    assert correlation.abs().max() < 4 / math.sqrt(2000)
    assert abs(torch.corrcoef(torch.stack([x[:-1, 0], x[1:, 0]]))[0, 1]) < 4 / math.sqrt(2000)  # of neighbours


@pytest.mark.parametrize("a, b", [(1.0, 1.0), (4.0, 1.0), (0.5, 0.5), (2.0, 3.0)])
def test_beta_numbers_are_beta(a, b):
    n, law = 4000, stats.beta(a, b)
    t = rng(range(n), total=n).beta("t", a, b)
    assert t.dtype == torch.float64 and t.min() >= 0 and t.max() <= 1
    assert stats.kstest(t.numpy(), law.cdf).pvalue > 1e-3
    for power in (1, 2):
        error = math.sqrt((law.moment(2 * power) - law.moment(power) ** 2) / n)
        assert abs((t**power).mean() - law.moment(power)) < 4 * error


def test_beta_of_one_and_one_is_the_uniform_number_of_the_same_name():
    assert torch.equal(rng(range(9)).beta("t", 1, 1), rng(range(9)).uniform("t"))


@quick
@given(st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any), st.integers(0, 99), st.randoms())
def test_dealing_partitions_the_global_batch(parts, step, random):
    counts = {str(i): n for i, n in enumerate(parts)}
    total = sum(parts)
    whole = rng(range(total), total, step=step).deal(counts)
    assert torch.bincount(whole, minlength=len(parts)).tolist() == parts
    order = random.sample(range(total), total)
    cut = random.randint(0, total)
    for held in (order[:cut], order[cut:]):
        assert torch.equal(rng(held, total, step=step).deal(counts), whole[held])


def test_dealing_is_shuffled_anew_every_step():
    hands = torch.stack([rng(range(8), 8, step=step).deal({"a": 4, "b": 4}) for step in range(200)])
    assert len(torch.unique(hands, dim=0)) > 40  # of 70
    assert (hands.double().mean(0) - 0.5).abs().max() < 4 * 0.5 / math.sqrt(200)  # no place prefers a role


# ---- requests ----


def test_noise_of_a_request_knows_only_the_request():
    a = request_noise(SHAPE, "shapes", "colors/007", 0)
    torch.rand(3)  # a global generator has no part in it
    assert torch.equal(a, request_noise(SHAPE, "shapes", "colors/007", 0))
    others = [("shapes", "colors/007", 1), ("shapes", "colors/008", 0), ("moons", "colors/007", 0)]
    assert all((a != request_noise(SHAPE, *other)).all() for other in others)
    names = [request_noise(SHAPE, "shapes", "colors/007", 0, name) for name in ("init", "0", "1")]
    assert torch.equal(a, names[0]) and (names[1] != names[2]).all() and (names[0] != names[1]).all()


def test_noise_of_a_request_is_the_same_on_every_machine():
    """The rule is written down: a CPU generator seeded by the first 8 bytes of
    sha256("benchmark\\0key\\0copy\\0init")."""
    from hashlib import sha256

    seed = int.from_bytes(sha256(b"shapes\0colors/007\x001\0init").digest()[:8], "big")
    want = torch.randn(*SHAPE, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(request_noise(SHAPE, "shapes", "colors/007", 1), want)


def test_permutations_and_normals_are_keyed():
    assert permutation(50, 0, "epoch", 1).sort().values.tolist() == list(range(50))
    assert torch.equal(permutation(50, 0, "epoch", 1), permutation(50, 0, "epoch", 1))
    assert not torch.equal(permutation(50, 0, "epoch", 1), permutation(50, 0, "epoch", 2))
    assert not torch.equal(normal((4,), "a", 1), normal((4,), "a", 2))


# ---- roles ----


@quick
@given(
    st.dictionaries(st.text(min_size=1, max_size=3), st.floats(0, 1e3, allow_subnormal=False), min_size=1, max_size=6),
    st.integers(0, 3000),
)
def test_roles_sum_to_the_batch_each_within_one_of_its_share(shares, n):
    if not any(shares.values()):
        with pytest.raises(ValueError, match="not all zero"):
            split_roles(shares, n)
        return
    counts = split_roles(shares, n)
    assert list(counts) == list(shares) and sum(counts.values()) == n
    whole = sum(map(Fraction, shares.values()))
    for role, share in shares.items():
        assert abs(counts[role] - n * Fraction(share) / whole) < 1 + Fraction(1, 10**9)
        assert share or counts[role] == 0


def dealt_exactly(shares, n):
    """The largest remainder over decimals, in whole numbers and without rounding."""
    parts = [Fraction(str(share)) for share in shares]
    exact = [n * part / sum(parts) for part in parts]
    counts = [math.floor(value) for value in exact]
    for _ in range(n - sum(counts)):
        left = [value - count for value, count in zip(exact, counts)]
        counts[left.index(max(left))] += 1
    return counts


@quick
@given(st.lists(st.integers(0, 20).map(lambda k: k / 10), min_size=3, max_size=6).filter(any), st.integers(0, 64))
@example([0.2, 0.5, 0.3, 2.0, 0.0], 20)
def test_roles_are_dealt_as_exact_arithmetic_deals_them_and_ties_go_to_the_earlier(shares, n):
    counts = split_roles({str(i): share for i, share in enumerate(shares)}, n)
    assert list(counts.values()) == dealt_exactly(shares, n)


def test_equal_remainders_of_decimals_are_equal():
    assert list(split_roles({"a": 0.2, "b": 0.5, "c": 0.3, "d": 2.0, "e": 0.0}, 20).values()) == [2, 3, 2, 13, 0]


@quick
@given(st.lists(st.integers(0, 20), min_size=1, max_size=5).filter(any), st.integers(1, 500), st.integers(1, 7))
def test_only_proportions_of_the_shares_matter(parts, n, factor):
    shares = {str(i): float(p) for i, p in enumerate(parts)}
    assert split_roles(shares, sum(parts)) == {role: int(p) for role, p in shares.items()}  # exact where it can be
    doubled = {role: p * 2.0**factor for role, p in shares.items()}
    assert split_roles(doubled, n) == split_roles(shares, n)


def test_a_negative_share_is_refused():
    with pytest.raises(ValueError, match=">= 0"):
        split_roles({"a": 2.0, "b": -1.0}, 4)
