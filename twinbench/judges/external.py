"""A judge in another environment: a program that answers questions about pictures over its standard input and output.

DPG-Bench's mPLUG needs packages that do not go together with ours; its program runs where they are. One JSON object a
line. First the program says who it is; then to every line it is sent it answers with one, in any order:

    <- {"name": "mplug", "version": "modelscope 1.40.2", "weights": "<sha256>"}
    -> {"id": 0, "png": "<base64>", "questions": ["Is there a dog?", "Is the dog red?"]}
    <- {"id": 0, "answers": ["yes", "no"]}        or {"id": 0, "error": "what went wrong"}

What it writes to standard error is passed on. It ends when its input ends.
"""

from __future__ import annotations

import base64
import io
import json
import queue
import subprocess
import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from twinbench.errors import UserError, WorkError
from twinbench.judges import known
from twinbench.judges.base import VQA, Judge, Pictures
from twinbench.settings import Strict

GRACE = 5.0  # seconds that a program has to end


class ExternalSettings(Strict):
    command: list[str] = Field(description="the program and its arguments, as in [/envs/mplug/bin/python, serve.py]")
    batch: int = Field(8, ge=1, description="pictures sent before answers are awaited")
    timeout: float = Field(600, gt=0, description="seconds to wait for a line, the first one too")


class ExternalVQA(Judge, VQA):
    Config: ClassVar[type[Strict]] = ExternalSettings
    name = "external-vqa"

    def answers(self, pictures: Pictures, questions: Sequence[str]) -> list[str]:
        """One answer a pair, as the program gives it. A picture that stands there several times is sent once.

        Raises WorkError if the program dies, is silent too long, or says that it failed. It is ended then, so that what
        it still had to say is not taken for an answer to the next question, which starts it anew."""
        if len(pictures) != len(questions):
            raise ValueError(f"{len(pictures)} pictures and {len(questions)} questions")
        try:
            return self._answers(pictures, questions)
        except WorkError:
            self.close()
            raise

    def _answers(self, pictures: Pictures, questions: Sequence[str]) -> list[str]:
        places: dict[int, list[int]] = {}
        for i, picture in enumerate(pictures):
            places.setdefault(id(picture), []).append(i)
        groups, out = list(places.values()), [""] * len(questions)
        for start in range(0, len(groups), self.config.batch):
            part = groups[start : start + self.config.batch]
            for k, rows in enumerate(part):
                self._process.send({"id": k, "png": png(pictures[rows[0]]), "questions": [questions[i] for i in rows]})
            for k, told in self._read([len(rows) for rows in part]).items():
                for i, answer in zip(part[k], told, strict=True):
                    out[i] = answer
        return out

    @property
    def weights(self) -> str:
        return self.identity["weights"]

    @cached_property
    def identity(self) -> dict[str, str]:
        return {"judge": self.name, "rules": self.rules, **self._process.hello}

    @cached_property
    def version(self) -> str:
        return f"{self.identity['name']} {self.identity['version']}, weights {self.weights[:12]}"

    def selftest(self) -> None:
        known.check_vqa(self)

    def expect(self, right: int, of: int, least: int, what: str) -> None:
        if right < least:
            raise WorkError(f"judge {self.name} ({self.version}) fails its self-test: {right} of {of} right in {what}")

    def close(self) -> None:
        """End the program; the next question starts it again."""
        process = self.__dict__.pop("_process", None)
        if process is not None:
            process.close()

    @cached_property
    def _process(self) -> _Process:
        return _Process(self.config.command, self.config.timeout)

    def _read(self, asked: Sequence[int]) -> dict[int, list[str]]:
        """The answers by picture. asked: how many questions each had."""
        found: dict[int, list[str]] = {}
        while len(found) < len(asked):
            row = self._process.receive()
            if "error" in row:
                raise WorkError(f"judge {self.name}: {self.config.command[0]} failed: {row['error']}")
            known = row.get("id") in range(len(asked)) and row["id"] not in found
            if not known or not _texts(row.get("answers")) or len(row["answers"]) != asked[row["id"]]:
                raise WorkError(f"judge {self.name}: {self.config.command[0]} answered {json.dumps(row)[:120]}")
            found[row["id"]] = row["answers"]
        return found


def png(picture: np.ndarray) -> str:
    """A picture as base64 of a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


class _Process:
    """The running program. A thread reads its lines, so that neither side waits for the other with a full pipe."""

    def __init__(self, command: Sequence[str], timeout: float) -> None:
        self.command, self.timeout = command[0], timeout
        try:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        except OSError as error:
            raise UserError(f"judge external-vqa: cannot start {command[0]} ({error.strerror})") from None
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.hello = {key: str(value) for key, value in self.receive().items()}
        if {"name", "version", "weights"} - set(self.hello):
            self.close()
            raise WorkError(f"judge external-vqa: {self.command} did not say its name, version and weights first")

    def send(self, row: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(row) + "\n")
            self.process.stdin.flush()
        except OSError:
            raise self._gone() from None

    def receive(self) -> dict[str, Any]:
        try:
            line = self.lines.get(timeout=self.timeout)
        except queue.Empty:
            self.process.kill()
            self.close()
            raise WorkError(f"judge external-vqa: {self.command} said nothing for {self.timeout:g} s") from None
        if not line:
            raise self._gone()
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise WorkError(f"judge external-vqa: {self.command} wrote {line.strip()[:80]!r}, which is no JSON object")
        return row

    def close(self) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(GRACE)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def _gone(self) -> WorkError:
        try:
            return WorkError(f"judge external-vqa: {self.command} ended with exit code {self.process.wait(GRACE)}")
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.close()
            return WorkError(f"judge external-vqa: {self.command} closed its input or output, and did not end")
