"""The large families on tiny pipelines: the pretrained network at first, a two-time one as it learns."""

import copy

import diffusers
import families
import pytest
import torch
from families import FAMILIES, OFFICIAL, WORDED, R, T, call
from torch.nn.attention import SDPBackend, sdpa_kernel

from twinbench.flow import inputs_only
from twinbench.sampler import Schedule, sample

each = pytest.mark.parametrize("name", FAMILIES)


def vanilla(network, name, cond, z, t):
    """The velocity of the folder's transformer, without any of our hooks."""
    twin = copy.copy(network)
    twin._modules = dict(network._modules)
    kind = getattr(diffusers, network.network)
    twin._modules["transformer"] = kind.from_pretrained(families.folder(name), subfolder="transformer")
    with torch.no_grad():
        return twin.velocity(z, t, cond)


@pytest.mark.parametrize("pixels", [(64, 64), (64, 96), (96, 32)], ids=["square", "wide", "high"])
@pytest.mark.parametrize("name", WORDED)
def test_euler_steps_of_the_velocity_draw_the_stock_image(name, pixels):
    network = families.backbone(name)
    pipeline = families.stock(families.folder(name), network)
    z = families.noise(network, pixels=pixels)
    stock = families.stock_images(pipeline, network, name, z, num_inference_steps=3)
    times = tuple(pipeline.scheduler.sigmas[:-1].tolist())
    ours = families.decoded(
        network, sample(network, z, network.encode(families.prompts(name)), Schedule(times, "same"))
    )
    assert len(times) == 3
    assert stock.std() > 0.02 and stock.shape[2:] == pixels
    assert (ours - stock).abs().max() < 1e-5


@each
def test_at_first_it_is_the_pretrained_network_for_every_r_and_both_signs(name):
    network = families.backbone(name)
    cond, z = network.encode(families.prompts(name)), families.noise(network)
    reference = vanilla(network, name, cond, z, T)
    for t, r in ((T, T), (T, R), (T, torch.zeros(2)), (-T, -T)):
        assert torch.equal(call(network, cond, z, t, r), reference)
    with torch.no_grad():
        assert torch.equal(network.pretrained(z, T, R, cond), reference)


@each
def test_one_update_parts_the_twin_and_the_second_time_from_the_velocity(name):
    network = families.backbone(name)
    cond, z = network.encode(families.prompts(name)), families.noise(network)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):  # behind a last layer of zeros, the first one has its gradient from the second step on
        optimizer.zero_grad()
        loss = (network(z, T, R, cond) - z).square().mean() + network(z, -T, -T, cond).square().mean()
        loss.backward()
        optimizer.step()
        assert (call(network, cond, z, -T, -T) - call(network, cond, z, T, T)).abs().max() > 1e-4
        assert (call(network, cond, z, T, R) - call(network, cond, z, T, T)).abs().max() > 1e-6
    for key, p in network.target_time.named_parameters():
        assert p.grad.abs().max() > 0, key
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


@each
def test_parameters_without_effect_stay_frozen_and_are_all_of_them(name):
    network = families.backbone(name)
    cond, z = network.encode(families.prompts(name)), families.noise(network)
    network.requires_grad_(False).requires_grad_(True)
    frozen = {key for key, p in network.named_parameters() if not p.requires_grad}
    assert bool(frozen) == (name == "qwen-image")
    for p in network.parameters():
        p.requires_grad = True
    network(z, T, R, cond).square().mean().backward()
    assert frozen == {key for key, p in network.named_parameters() if p.grad is None}


@each
def test_times_are_exact_where_the_weights_are_bfloat16(name):
    network = families.backbone(name, dtype="bfloat16")
    given = []
    network.transformer.get_submodule(network.time_modules[0]).register_forward_pre_hook(
        lambda module, args: given.append(args[0])
    )
    t = torch.tensor([0.999, 0.123456])
    call(network, network.encode(families.prompts(name)), families.noise(network), t, t)
    assert torch.equal(given[0], network.scaled(t))
    assert not torch.equal(given[0], network.scaled(t.bfloat16().float()))


@each
def test_recomputed_gradients_are_the_kept_ones(name):
    network = families.disturb(families.backbone(name))
    cond, z = network.encode(families.prompts(name)), families.noise(network)

    def gradients():
        network.zero_grad()
        v = network(z, T, R, cond)
        with inputs_only(network):  # by the time of the backward pass they take gradients again
            v = network(z - v, -T, -T, cond)
        call(network, cond, z)  # other times in between must not be what is recomputed
        v.square().mean().backward()
        return v.detach(), [p.grad.clone() for p in network.parameters() if p.grad is not None]

    kept = gradients()
    network.recompute()
    again = gradients()
    network.recompute(False)
    assert torch.equal(kept[0], again[0])
    assert all(torch.equal(a, b) for a, b in zip(kept[1], again[1], strict=True))


@each
def test_a_pass_with_tangents_has_gradients_where_others_are_recomputed(name):
    network = families.disturb(families.backbone(name))
    cond, z = network.encode(families.prompts(name)), families.noise(network)

    def gradients():
        network.zero_grad()
        with sdpa_kernel(SDPBackend.MATH):
            v, along = torch.func.jvp(lambda t: network(z, t, R, cond), (T,), (torch.ones_like(T),))
        v.square().mean().backward()
        return [along.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]

    kept = gradients()
    network.recompute()
    assert all(torch.equal(a, b) for a, b in zip(kept, gradients(), strict=True))


@each
def test_a_copy_and_a_loaded_state_are_the_same_network_and_live_apart(name):
    network = families.disturb(families.backbone(name))
    cond, z = network.encode(families.prompts(name)), families.noise(network)
    before = call(network, cond, z)
    twin, loaded = copy.deepcopy(network), families.backbone(name, seed=9)
    loaded.load_state_dict(network.state_dict())
    with torch.no_grad():
        network.target_time.linear_2.bias.add_(1)
    assert (call(network, cond, z) - before).abs().max() > 1e-3
    assert torch.equal(call(twin, cond, z), before)
    assert torch.equal(call(loaded, cond, z), before)
    assert twin.codec is network.codec


@each
def test_compiling_changes_nothing(name):
    torch._dynamo.reset()
    network = families.disturb(families.backbone(name))
    cond, z = network.encode(families.prompts(name)), families.noise(network)
    compiled = torch.compile(network, backend="aot_eager")
    t = T * torch.tensor([1, -1])  # both signs in one graph
    torch.testing.assert_close(call(compiled, cond, z, t), call(network, cond, z, t), rtol=0, atol=2e-6)


@each
def test_forward_derivative_is_the_quotient_of_differences(name):
    network = families.disturb(families.backbone(name)).requires_grad_(False)
    cond, z = network.encode(families.prompts(name)), families.noise(network)
    r, h = R + 0.3, 3e-5
    dx, dt, dr = torch.full_like(z, 0.5), torch.zeros(2), torch.full((2,), 0.5)
    with sdpa_kernel(SDPBackend.MATH):
        v, along = torch.func.jvp(lambda x, t, r: network(x, t, r, cond), (z, T, r), (dx, dt, dr))
        ahead, behind = (call(network, cond, z + s * dx, T, r + s * dr) for s in (h, -h))
    torch.testing.assert_close(v, call(network, cond, z, T, r), rtol=0, atol=2e-5)
    assert (along - (ahead - behind) / (2 * h)).norm() < 0.03 * along.norm()


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_official_form_is_the_base_at_equal_times_and_shows_the_sign(name):
    network = families.backbone(name, form="official")
    cond, z = network.encode(families.prompts(name)), families.noise(network)
    reference = vanilla(network, name, cond, z, T)
    assert torch.equal(call(network, cond, z, T, T), reference)
    assert torch.equal(call(network, cond, z, -T, -T), vanilla(network, name, cond, z, -T))
    assert (call(network, cond, z, -T, -T) - reference).abs().max() > 1e-3
    gap = (call(network, cond, z, T, R) - reference).abs().max()
    assert gap > 1e-5
    with torch.no_grad():
        assert torch.equal(network.pretrained(z, T, R, cond), reference)


@pytest.mark.parametrize("name", ["z-image", "flux", "dit"])
def test_families_without_an_official_form_say_so(name):
    with pytest.raises(ValueError, match="set form: foldable"):
        families.backbone(name, form="official")
