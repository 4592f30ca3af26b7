"""The sampler: the official trajectories to 1e-10, and what must hold for any schedule."""

import pytest
import torch
from gaussian import flow_map, mean_velocity
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Tiny, load, tensor

from twinbench.flow import Counted, expand, guided, mix, split
from twinbench.sampler import Schedule, sample, schedule_times

RECORDED = load("twinflow_sampler")
HOPS = {"few": "end", "any": "next", "mul": "same"}
quick = settings(max_examples=60, deadline=None)


def schedule_of(args):
    """The official arguments as ours."""
    steps, heun = args["sampling_steps"], args.get("sampling_order", 1) == 2
    times = schedule_times((steps + 1) // 2 if heun else steps, args.get("rfba_gap_steps", (0.0, 0.0)))
    renoise = {"SDE": "sde"}.get(args.get("stochast_ratio"), args.get("stochast_ratio", 0.0))
    return Schedule(tuple(times.tolist()), HOPS[args["sampling_style"]], renoise, heun=heun)


def replay(case):
    """Our trace [(t, r, x_hat)] of a recorded case, its end, and the times and inputs that the network saw."""
    net, seen = Tiny(RECORDED["P"]), []

    def velocity(x, t, r, cond):
        seen.append((t.tolist(), r.tolist(), x))
        return net(x, t, r, cond)

    trace, noise = [], tensor(RECORDED["noise"])
    cond = {"c": tensor(RECORDED["c"])}
    end = sample(velocity, tensor(RECORDED["z0"]), cond, schedule_of(case["args"]), lambda i: noise[i], trace)
    return trace, end, seen


def named(part):
    return [case for case in RECORDED["cases"] if part in case["name"]]


@pytest.mark.parametrize("case", [c for c in RECORDED["cases"] if "SDE" not in c["name"]], ids=lambda c: c["name"])
def test_official_trajectory(case):
    trace, end, seen = replay(case)
    pairs = case["calls_t_r"]
    if case["args"].get("sampling_order") == 2 and case["args"]["rfba_gap_steps"][1] == 0:
        assert pairs[-1] == [0.0, 0.0]  # the official code corrects the hop that ends at 0 too; its x_hat are the same
        pairs = pairs[:-1]
    assert len(seen) == len(pairs) == schedule_of(case["args"]).calls
    for (t, r, _), (t_want, r_want) in zip(seen, pairs, strict=True):
        assert t == pytest.approx([t_want] * 2, abs=1e-14) and r == pytest.approx([r_want] * 2, abs=1e-14)
    for (_, _, data), want in zip(trace, case["samples"][1:], strict=True):
        torch.testing.assert_close(data, tensor(want), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(end, tensor(case["final"]), rtol=1e-10, atol=1e-10)


def test_sde_share_is_taken_anew_at_every_hop_unlike_the_official_one():
    (case,) = named("SDE")
    trace, _, seen = replay(case)
    got, want = torch.stack([data for *_, data in trace]), tensor(case["samples"][1:])
    torch.testing.assert_close(got[:2], want[:2], rtol=1e-10, atol=1e-10)  # the first hop's share is the official one
    assert (got[2:] - want[2:]).abs().amin(dim=(1, 2)).min() > 1e-3
    share = min(1, 2 * 0.75 * 0.25 / 0.5**2)  # of the second hop, from 0.75 to 0.5
    data, fresh = split(seen[1][2], (seen[1][2] - trace[1][2]) / 0.75, tensor([0.75, 0.75]))
    noised = mix(data, (1 - share) ** 0.5 * fresh + share**0.5 * tensor(RECORDED["noise"])[1], tensor([0.5, 0.5]))
    torch.testing.assert_close(seen[2][2], noised, rtol=1e-10, atol=1e-10)


def test_heun_from_pure_noise_is_refused_where_the_official_one_is_not_finite():
    with pytest.raises(ValueError, match="first time below 1"):
        Schedule((1.0, 0.5), "same", heun=True)


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(times=()), "fall strictly"),
        (dict(times=(0.5, 0.5)), "fall strictly"),
        (dict(times=(1.2, 0.5)), "fall strictly"),
        (dict(times=(0.5, -0.1)), "fall strictly"),
        (dict(times=(1.0,), hop="far"), "hop must be"),
        (dict(times=(1.0,), renoise=1.5), "renoise must lie"),
        (dict(times=(0.9,), hop="next", heun=True), "Euler hops"),
        (dict(times=(0.9,), hop="same", heun=True, renoise=0.5), "Euler hops"),
    ],
)
def test_a_schedule_that_means_nothing_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        Schedule(**wrong)


def test_renoising_needs_noise():
    with pytest.raises(ValueError, match="needs noise"):
        sample(lambda x, t, r, c: x, torch.ones(1, 2), {}, Schedule((1.0, 0.5), renoise=1.0))


# ---- times ----


@pytest.mark.parametrize("case", RECORDED["kumaraswamy"], ids=lambda c: str(c["abc"]))
def test_times_follow_the_recorded_curve(case):
    times = schedule_times(len(case["u"]) - 1, (0.0, 0.0), case["abc"])  # 10 uniform steps: u = 0, 0.1, ... 0.9
    assert times.dtype == torch.float64
    torch.testing.assert_close(times, 1 - tensor(case["k"])[:-1], rtol=1e-12, atol=1e-12)


def test_gaps_are_the_first_and_the_last_time():
    want = tensor([0.999, 0.8326666666666667, 0.6663333333333333, 0.5])
    torch.testing.assert_close(schedule_times(4, (0.001, 0.5)), want, rtol=0, atol=1e-15)
    assert schedule_times(1, (0.001, 0.7)).tolist() == [0.999]
    assert schedule_times(2).tolist() == [1.0, 0.5]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_times_are_never_rounded_below_float32(dtype):
    seen = []

    def velocity(x, t, r, cond):
        seen.extend([t, r])
        return torch.zeros_like(x)

    sample(velocity, torch.zeros(2, 3, dtype=dtype), {}, Schedule((0.999, 0.6), "next"))
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    assert {t.dtype for t in seen} == {exact}
    assert [t[0].item() for t in seen] == [torch.tensor(t, dtype=exact).item() for t in (0.999, 0.6, 0.6, 0.0)]
    assert seen[0][0] < 1  # 0.999 is 1.0 in bfloat16: the grid that the official code makes there
    assert RECORDED["bf16_grid_S2_gap.001_.7"][0] == 1.0


# ---- truths of any schedule ----


@st.composite
def schedules(draw):
    """Any valid schedule, with times not too close to each other."""
    ticks = draw(st.lists(st.integers(1, 100), min_size=1, max_size=6, unique=True))
    heun = draw(st.booleans())
    times = tuple(tick / (101 if heun else 100) for tick in sorted(ticks, reverse=True))
    if heun:
        return Schedule(times, "same", 0.0, draw(st.floats(0, 1)), heun=True)
    renoise = draw(st.just("sde") | st.just(0.0) | st.floats(0, 1))
    return Schedule(times, draw(st.sampled_from(("end", "next", "same"))), renoise, draw(st.floats(0, 1)))


@quick
@given(schedules(), st.integers(0, 2**31))
def test_every_schedule_ends_at_the_data_if_the_data_are_one_point(schedule, seed):
    generator = torch.Generator().manual_seed(seed)
    point, z, *noise = torch.randn(8, 1, 3, dtype=torch.float64, generator=generator)
    seen, trace = [], []

    def velocity(x, t, r, cond):
        seen.append((x, t))
        return (x - point) / expand(t, x)

    end = sample(velocity, z, {}, schedule, lambda i: noise[i], trace)
    torch.testing.assert_close(end, point, rtol=0, atol=1e-9)
    for _, _, data in trace:
        torch.testing.assert_close(data, point, rtol=0, atol=1e-9)
    if schedule.renoise == 0:  # then all of it lies on the line through the point and the start
        first = schedule.times[0]
        far = (z - (1 - first) * point) / first
        for x, t in seen:
            torch.testing.assert_close(x, mix(point, far, t), rtol=0, atol=1e-8)


@quick
@given(schedules(), st.sampled_from((1.0, 2.0)))
def test_evaluations_are_what_the_schedule_says(schedule, scale):
    net = Counted(lambda x, t, r, cond: x * cond["c"])
    velocity = guided(net, {"c": torch.zeros(2, 1)}, scale)
    sample(velocity, torch.ones(2, 3), {"c": torch.ones(2, 1)}, schedule, lambda i: torch.zeros(2, 3))
    assert net.calls == schedule.calls * (2 if scale != 1 else 1)
    assert net.passes == 2 * net.calls


@quick
@given(st.floats(1.5, 8))
def test_guidance_is_linear_in_its_scale(scale):
    x, t = torch.tensor([[2.0]], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    velocity = guided(lambda x, t, r, cond: cond["c"] + x, {"c": torch.tensor([[1.0]])}, scale)
    assert velocity(x, t, t, {"c": torch.tensor([[4.0]])}).item() == pytest.approx(2 + 1 + scale * 3)


@quick
@given(schedules(), st.floats(-2, 2), st.floats(-2, 2))
def test_euler_on_a_linear_field_is_the_closed_product(schedule, a, b):
    schedule = Schedule(schedule.times, "same")
    z = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    end = sample(lambda x, t, r, cond: (a + b * expand(t, x)) * x, z, {}, schedule)
    product = 1.0
    for t, s in zip(schedule.times, [*schedule.times[1:], 0.0], strict=True):
        product *= 1 - (t - s) * (a + b * t)
    torch.testing.assert_close(end, product * z, rtol=1e-9, atol=1e-9)


@quick
@given(schedules())
def test_an_exact_flow_map_lands_on_the_trajectory_in_any_number_of_hops(schedule):
    schedule = Schedule(schedule.times, "next")
    z = torch.tensor([[1.3, -0.2, 0.7], [-2.0, 0.1, 0.0]], dtype=torch.float64)
    t = torch.full((2,), schedule.times[0], dtype=torch.float64)
    exact = flow_map(z, t, torch.zeros_like(t))
    torch.testing.assert_close(sample(mean_velocity, z, {}, schedule), exact, rtol=0, atol=1e-10)


def test_euler_converges_at_first_order_and_heun_at_second():
    z = torch.tensor([[1.3, -0.2, 0.7], [-2.0, 0.1, 0.0]], dtype=torch.float64)
    t = torch.full((2,), 0.95, dtype=torch.float64)
    exact = flow_map(z, t, torch.zeros_like(t))

    def error(steps, heun):
        schedule = Schedule(tuple(schedule_times(steps, (0.05, 0.0)).tolist()), "same", heun=heun)
        return (sample(mean_velocity, z, {}, schedule) - exact).norm().item()

    assert error(64, False) / error(128, False) == pytest.approx(2, rel=0.1)
    assert error(64, True) / error(128, True) == pytest.approx(4, rel=0.15)


def test_extrapolation_goes_beyond_the_raw_predictions_from_the_third_call_on():
    times, factor, calls = (1.0, 0.7, 0.5, 0.2), 0.4, []
    cond = {"c": tensor(RECORDED["c"])}

    def velocity(x, t, r, cond):
        v = Tiny(RECORDED["P"])(x, t, r, cond)
        calls.append((x, split(x, v, t)))
        return v

    end = sample(velocity, tensor(RECORDED["z0"]), cond, Schedule(times, extrapolation=factor))
    for i, s in enumerate((0.7, 0.5, 0.2, 0.0)):
        data, fresh = calls[i][1]
        if i >= 2:
            before = calls[i - 1][1]
            data, fresh = data + factor * (data - before[0]), fresh + factor * (fresh - before[1])
        reached = calls[i + 1][0] if i < 3 else end
        torch.testing.assert_close(reached, (1 - s) * data + s * fresh, rtol=0, atol=1e-12)


@quick
@given(st.integers(0, 2**31), st.floats(0, 1), st.sampled_from((1, -1)))
def test_mix_and_split_are_inverse(seed, t, sign):
    x, z = torch.randn(2, 4, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    times = torch.full((4,), t, dtype=torch.float64)
    data, noise = split(mix(x, z, times), z - x, sign * times)
    torch.testing.assert_close(data, x, rtol=0, atol=1e-13)
    torch.testing.assert_close(noise, z, rtol=0, atol=1e-13)
