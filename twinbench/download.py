"""One file over HTTP: it arrives in `<name>.part`, a cut download goes on where it stopped, and it gets its name only
when its size and sum are right."""

from __future__ import annotations

import http.client
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from twinbench import files
from twinbench.errors import WorkError

BLOCK = 1 << 20
SECONDS = 60  # without a byte
Progress = tuple[str, int, int]  # file, bytes done, bytes in all (0: not told)


def download(url: str, target: Path, sha256: str = "", size: int = 0) -> Iterator[Progress]:
    """Get url into target; yields progress. sha256 may be its first digits; "" and 0 are unknown.

    Raises WorkError where the server cannot be reached, breaks off, or sends another file than the known one."""
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    total = size
    for done, told in _body(url, part):
        if size and told and told != size:
            part.unlink()
            raise WorkError(f"{url} has {told} bytes now, not {size}; it is another file than the known one")
        total = size or told
        yield target.name, done, total
    got = part.stat().st_size
    if total and got < total:
        raise WorkError(f"{url} broke off after {got} of {total} bytes; the same command goes on from there")
    if sha256 and not (sum_ := files.sha256(part)).startswith(sha256):
        part.unlink()
        raise WorkError(f"{url} has sha256 {sum_[:12]}..., not {sha256[:12]}...; what came was deleted")
    os.replace(part, target)


def _body(url: str, part: Path) -> Iterator[tuple[int, int]]:
    """Append what is missing to the part, or write it anew if the server cannot go on; yields (bytes, all bytes)."""
    held = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"Range": f"bytes={held}-"} if held else {})
    try:
        with urlopen(request, timeout=SECONDS) as reply:
            going_on = reply.status == http.client.PARTIAL_CONTENT
            held = held if going_on else 0
            told = held + int(reply.headers.get("Content-Length") or -held)
            with part.open("ab" if going_on else "wb") as file:
                yield held, told
                while block := reply.read(BLOCK):
                    file.write(block)
                    held += len(block)
                    yield held, told
    except HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise WorkError(f"{url} answers {error.code} {error.reason}") from None
        total = (error.headers.get("Content-Range") or "*/0").rsplit("/", 1)[-1]
        if total != str(held):  # the part is no beginning of that file
            part.unlink()
            yield from _body(url, part)
    except (URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        reason = getattr(error, "reason", error) or type(error).__name__
        raise WorkError(f"{url} cannot be reached or broke off ({reason}); the same command goes on") from None
