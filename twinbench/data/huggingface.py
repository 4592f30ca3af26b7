"""A dataset of the model hub, or one that `datasets` has saved on disk: a column of pictures, one of captions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from twinbench.data.captioned import Captioned, StoredConfig, caption_of
from twinbench.errors import UserError


class HuggingFaceConfig(StoredConfig):
    split: str = "train"
    subset: str | None = Field(None, description="the dataset's configuration, where it has several")
    revision: str | None = Field(None, description="commit or tag of the repository")
    image: str = Field("image", description="the column of pictures")


class HuggingFace(Captioned):
    Config: ClassVar[type[HuggingFaceConfig]] = HuggingFaceConfig
    config: HuggingFaceConfig

    def captions(self) -> Sequence[str]:
        """Raises UserError where the package, the dataset or a column lacks."""
        try:
            import datasets
        except ImportError:
            raise UserError("datasets of the hub need a package: pip install 'twinbench[data]'") from None
        c = self.config
        try:
            if (Path(c.path) / "dataset_dict.json").is_file() or (Path(c.path) / "state.json").is_file():
                held = datasets.load_from_disk(c.path)
                self.rows = held[c.split] if isinstance(held, datasets.DatasetDict) else held
            else:
                self.rows = datasets.load_dataset(c.path, c.subset, split=c.split, revision=c.revision)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"no dataset {c.path!r} with split {c.split!r} ({' '.join(str(error).split())[:200]})"
            ) from None
        if c.image not in self.rows.column_names:
            raise UserError(f"dataset {c.path!r} has no column {c.image!r}; name it (--set data.image=...)")
        self.rows = self.rows.cast_column(c.image, datasets.Image())
        others = self.rows.remove_columns([c.image])
        return [caption_of(row, c.field, f"dataset {c.path!r}") for row in others]

    def picture(self, i: int) -> np.ndarray:
        from PIL import ImageOps

        return np.asarray(ImageOps.exif_transpose(self.rows[i][self.config.image]).convert("RGB"))

    def pieces(self) -> Iterable[str]:
        """Pictures lie within the dataset, or beside it as files or in archives."""
        import pyarrow.compute

        yield f"{self.config.subset} {self.config.split} {self.config.revision} {len(self.rows)}"
        held = self.rows.data.column(self.config.image).slice(0, len(self))
        sizes = pyarrow.compute.binary_length(pyarrow.compute.struct_field(held, "bytes"))
        files = pyarrow.compute.struct_field(held, "path")
        for size, file in zip(sizes.to_pylist(), files.to_pylist(), strict=True):
            beside = size is None and Path(file).is_file()
            yield str(Path(file).stat().st_size if beside else size)
