"""The tiny networks of the recorded fixtures, and how to read them."""

import json
from pathlib import Path

import torch

FIXTURES = Path(__file__).parent / "fixtures"


def load(name):
    return json.loads((FIXTURES / f"{name}.json").read_text())


def tensor(value):
    return torch.tensor(value, dtype=torch.float64)


class Tiny(torch.nn.Module):
    """F(x,t,r,c) = x A + t b1 + r b2 + t r b3 + c W + tanh(x Bm + t d1 + r d2)"""

    def __init__(self, parameters):
        super().__init__()
        for name, value in parameters.items():
            setattr(self, name, torch.nn.Parameter(tensor(value)))

    def forward(self, x, t, r, cond):
        t, r = t[:, None], r[:, None]
        line = x @ self.A + t * self.b1 + r * self.b2 + t * r * self.b3 + cond["c"] @ self.W
        return line + torch.tanh(x @ self.Bm + t * self.d1 + r * self.d2)
