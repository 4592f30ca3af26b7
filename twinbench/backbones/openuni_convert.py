"""A checkpoint of OpenUni as a model's folder: `python -m twinbench.backbones.openuni_convert CHECKPOINT FOLDER`.

The authors' checkpoint is the state of their model's parameters that were trained, pickled (github.com/wusize/OpenUni):
    meta_queries, connector.*, projector.*    always (src/models/openuni/internvl3_sana_hf.py)
    transformer.*                             SANA's; after pretraining it is left out, for it was frozen then
    lmm.*, vae.*                              frozen, so left out (scripts/train.py: exclude_frozen_parameters)
What is left out is that of its source. Where `lmm` is there, its language model is taken and the rest is not, for it
reads no words (src/models/internvl3/modeling_internvl_chat.py); `vae` is not taken, for it is never trained. Any other
name, and one that is missing, is an error.
"""

from __future__ import annotations

import argparse
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinbench.backbones.openuni import TEMPLATE, Connector, Parts, Reader, loaded
from twinbench.backbones.source import Source, quiet
from twinbench.errors import UserError
from twinbench.files import whole_folder

HELP = "Make a model's folder of a checkpoint of OpenUni: docs/openuni.md says what it needs."
LANGUAGE = "OpenGVLab/InternVL3-2B-hf"
SANA = "Efficient-Large-Model/Sana_1600M_512px_diffusers"
VAE = "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers"
HEAD = 64  # channels of a head of the connector: 1536 / 24 and 896 / 14 (configs/models/openuni_{l,b}_*_512_hf.py)
WORDS = ("meta_queries", "connector.", "projector.")
DRAWS, READS = "transformer.", "lmm.language_model.model."
UNREAD = ("lmm.language_model.lm_head.", "lmm.vision_model.", "lmm.mlp1.", "vae.")


def convert(checkpoint: Path, folder: Path, language: str = LANGUAGE, sana: str = SANA, vae: str = VAE) -> Path:
    """Write the folder of a model. language: InternVL3 in transformers' form; sana, vae: in that of diffusers; each a
    folder or a hub id. Raises UserError for a file that is no such checkpoint, or a folder that is there already."""
    quiet()
    with whole_folder(folder) as new:
        tensors = read(checkpoint)
        if unknown := [name for name in tensors if not name.startswith((*WORDS, DRAWS, READS, *UNREAD))]:
            raise UserError(f"{checkpoint} is no checkpoint of OpenUni: it holds {unknown[0]!r}")
        words = {name: value for name, value in tensors.items() if name.startswith(WORDS)}
        if "meta_queries" not in words:
            raise UserError(f"{checkpoint} is no checkpoint of OpenUni: it lacks 'meta_queries'")
        connector = Connector.of(words, words["meta_queries"].shape[1] // HEAD)
        tokenizer, model = internvl(language, taken(tensors, READS))
        reader = Reader(tokenizer, model, connector, {"heads": connector.heads, **TEMPLATE})
        parts = {"transformer": network(sana, taken(tensors, DRAWS)), "vae": Source(vae).load("AutoencoderDC")}
        if (width := parts["transformer"].config.caption_channels) != connector.projector.out_features:
            raise UserError(f"{sana!r} takes words of {width} channels, not of {connector.projector.out_features}")
        pipeline = Source(sana).load("SanaPipeline", text_encoder=None, tokenizer=None, **parts)
        Parts(pipeline, reader).save_pretrained(new)
    return folder


def read(checkpoint: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, by name; nothing else that a pickle may hold is let in. Raises UserError."""
    try:
        found = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(f"{checkpoint} cannot be read ({' '.join(str(error).split())[:200]})") from None
    found = found.get("state_dict", found) if isinstance(found, dict) else {}
    if not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{checkpoint} holds no tensors by name")
    return found


def taken(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def network(sana: str, weights: dict[str, Tensor]) -> Any:
    """SANA's transformer with these weights; its own, if there are none."""
    import diffusers

    kind, source = diffusers.SanaTransformer2DModel, Source(sana)
    if not weights:
        return source.load(kind.__name__, "transformer")
    return loaded(kind.from_config(source.sizes(kind.__name__, "transformer")), weights, "SANA's transformer")


def internvl(language: str, weights: dict[str, Tensor]) -> tuple[Any, Any]:
    """InternVL3's tokenizer and language model, with these weights if there are any. Raises UserError for another
    model."""
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer, model = AutoTokenizer.from_pretrained(language), AutoModel.from_pretrained(language, dtype="auto")
        model = model.language_model
    except (OSError, ValueError, AttributeError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{language!r} is no InternVL3 in transformers' form, as {LANGUAGE} is ({why})") from None
    return tokenizer, loaded(model, weights, "the language model") if weights else model


def main() -> None:
    parser = argparse.ArgumentParser("twinbench.backbones.openuni_convert", description=HELP)
    parser.add_argument("checkpoint", type=Path, help="the authors' .pth")
    parser.add_argument("folder", type=Path, help="where to; it must not be there yet")
    for name, default in (("language", LANGUAGE), ("sana", SANA), ("vae", VAE)):
        parser.add_argument(f"--{name}", default=default, help=f"a folder or a hub id ({default})")
    try:
        print(convert(**vars(parser.parse_args())))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
