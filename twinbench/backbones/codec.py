"""The codec of a pipeline: words to embeddings, pictures to latents. A cache and drawing need it, training does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from twinbench.backbones.source import Source
from twinbench.flow import Cond

Words = dict[str, Tensor]  # of one prompt, without padding: text [tokens, width], and what else the family asks for


class Codec:
    """The text encoders and the VAE of a pipeline: each is loaded when it is first asked for, moves to the device it is
    asked on, is shared by copies of the network, and goes when told."""

    def __init__(self, source: Source, pipeline: str, vae: str, text_dtype: torch.dtype) -> None:
        self.source, self.text_dtype = source, text_dtype
        self.kinds = {"pipeline": pipeline, "vae": vae}
        self.null: Words | None = None
        self._held: dict[str, Any] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Codec:
        return self

    def pipeline(self, device: torch.device) -> Any:
        """The stock pipeline without transformer and VAE: tokenizers, text encoders and their `encode_prompt`."""
        if "pipeline" not in self._held:
            self._held["pipeline"] = self.source.load(
                self.kinds["pipeline"], transformer=None, vae=None, dtype=self.text_dtype
            )
        return self._held["pipeline"].to(device)

    def vae(self, device: torch.device) -> Any:
        """The VAE in float32; one picture at a time, so no batch is too large and none rounds another way."""
        if "vae" not in self._held:
            vae = self.source.load(self.kinds["vae"], "vae", dtype=torch.float32)
            vae.requires_grad_(False).eval().enable_slicing()
            self._held["vae"] = vae
        return self._held["vae"].to(device)

    def drop(self) -> None:
        """Let go of the text encoders and the VAE; the empty condition stays."""
        self._held.clear()


def padded(rows: Sequence[Words], masked: bool) -> Cond:
    """The condition of some prompts: `text` [n, tokens, width] filled up with zeros to the longest one, and where the
    family knows a mask, `mask` [n, tokens]: true where there are words. The rest is stacked; a family of classes
    has nothing else."""
    cond = {name: torch.stack([row[name] for row in rows]) for name in rows[0] if name != "text"}
    if "text" not in rows[0]:
        return cond
    cond["text"] = pad_sequence([row["text"] for row in rows], batch_first=True)
    if masked:
        counts = torch.tensor([len(row["text"]) for row in rows], device=cond["text"].device)
        cond["mask"] = torch.arange(cond["text"].shape[1], device=counts.device) < counts[:, None]
    return cond


def unpadded(cond: Cond) -> list[Words]:
    """The words of each row, as they are stored: the inverse of `padded`."""
    counts = cond["mask"].sum(1).tolist() if "mask" in cond else [cond["text"].shape[1]] * len(cond["text"])
    names = [name for name in cond if name not in ("text", "mask")]
    return [
        {"text": cond["text"][i, :count], **{name: cond[name][i] for name in names}} for i, count in enumerate(counts)
    ]
