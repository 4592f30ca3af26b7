"""Adapters on a transformer of diffusers: as on any other backbone."""

import copy

import torch
from adapted import scattered

from twinbench.backbones.sd3 import SD3
from twinbench.backbones.tiny import tiny
from twinbench.settings import Lora
from twinbench.training.adapters import Adapters


def test_a_diffusers_transformer_takes_adapters_the_same_way(tmp_path):
    backbone = SD3(SD3.Config(model=str(tiny("sd3", tmp_path / "sd3")), resolution=64))
    whole = copy.deepcopy(backbone)
    cond = backbone.encode(["a cat", "a red bench in the rain"])
    x, t = torch.randn(2, *backbone.shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0.9, 0.4])
    want = whole(x, t, t, cond)
    adapters = Adapters(backbone)
    student, average = (adapters.add(name, Lora(rank=2), 0) for name in ("student", "average"))
    assert torch.equal(student(x, t, t / 2, cond), want)
    scattered(student), scattered(average, 1).requires_grad_(False)
    assert torch.equal(adapters.off()(x, t, t, cond), want)

    def gradients():
        v = student(x, t, t / 2, cond)
        (v - average(v, -t, -t, cond)).square().mean().backward()
        found = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
        student.zero_grad()
        return found

    plain = gradients()
    backbone.recompute()
    again = gradients()
    assert plain.keys() == again.keys() and "target_time.linear_2.weight" in plain
    for name, grad in plain.items():
        torch.testing.assert_close(grad, again[name], rtol=1e-4, atol=1e-6)
    whole.load_state_dict(student.merged())
    torch.testing.assert_close(whole(x, -t, -t, cond), student(x, -t, -t, cond), rtol=1e-4, atol=1e-4)
