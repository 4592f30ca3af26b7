"""Parquet files with a column of pictures, as bytes or as the struct that the model hub's datasets have, and one of
captions."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from twinbench.data.captioned import Captioned, StoredConfig, caption_of, files_at, opened, sizes_of
from twinbench.errors import UserError


class ParquetConfig(StoredConfig):
    image: str = Field("image", description="the column of pictures")


class Parquet(Captioned):
    Config: ClassVar[type[ParquetConfig]] = ParquetConfig
    config: ParquetConfig

    def captions(self) -> Sequence[str]:
        """Raises UserError where pyarrow or a column lacks."""
        try:
            import pyarrow.parquet
        except ImportError:
            raise UserError("parquet needs pyarrow: pip install 'twinbench[data]'") from None
        self.files = files_at(self.config.path, ".parquet")
        self.tables = [pyarrow.parquet.ParquetFile(file) for file in self.files]
        self.groups = [(table, i) for table in self.tables for i in range(table.num_row_groups)]
        self.firsts = [0, *accumulate(table.metadata.row_group(i).num_rows for table, i in self.groups)]
        self._pictures = lru_cache(2)(self._column)
        for file, table in zip(self.files, self.tables, strict=True):
            if self.config.image not in table.schema_arrow.names:
                raise UserError(f"{file} has no column {self.config.image!r}; name it (--set data.image=...)")
        return [caption for file, table in zip(self.files, self.tables) for caption in self._texts(file, table)]

    def _texts(self, file: Any, table: Any) -> list[str]:
        names = [name for name in table.schema_arrow.names if name != self.config.image]
        row = dict.fromkeys(names, "")
        caption_of(row, self.config.field, str(file))
        wanted = [self.config.field] if self.config.field else names
        return [caption_of(row, self.config.field, str(file)) for row in table.read(columns=wanted).to_pylist()]

    def _column(self, group: int) -> list[Any]:
        table, i = self.groups[group]
        return table.read_row_group(i, columns=[self.config.image]).column(0).to_pylist()

    def picture(self, i: int) -> np.ndarray:
        group = bisect_right(self.firsts, i) - 1
        held = self._pictures(group)[i - self.firsts[group]]
        return opened(held["bytes"] if isinstance(held, dict) else held, f"of row {i} in {self.config.path}")

    def pieces(self) -> Iterable[str]:
        return sizes_of(self.files)
