"""RCGM: any-step generation by N-th order recursive consistency (Sun & Lin, ICLR 2026; eq. 1 of TwinFlow).

Its code is not public; it is specified from TwinFlow's, which contains it: the any-step objective without the twin. In
practice one third of the batch each is one_step, local and any_step; in theory any_step alone."""

from __future__ import annotations

from typing import ClassVar

from pydantic import model_validator

from twinbench.flow import Hop
from twinbench.methods.anystep import AnyStep


class RCGM(AnyStep):
    class Config(AnyStep.Config):
        @model_validator(mode="after")
        def _has_no_twin(self) -> RCGM.Config:
            if self.shares.fake:
                raise ValueError("rcgm trains no fake rows; set shares.fake: 0, or use twinflow")
            return self

    hop: ClassVar[Hop] = "next"
