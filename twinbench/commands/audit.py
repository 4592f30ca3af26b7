"""audit: does a training set hold a benchmark's prompts?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twinbench.commands.options import words
from twinbench.errors import UserError


def audit(
    captions: Annotated[str, typer.Option(help="A .txt or .jsonl file of captions, or a dataset's name.")],
    bench: Annotated[str, typer.Option(help="Benchmarks, as in geneval,dpg.")] = "geneval",
    out: Annotated[Path, typer.Option(help="Where audit.json and the clean captions go.")] = Path("audit"),
    embed: Annotated[str | None, typer.Option(help="A judge of texts (clip), to match meanings as well.")] = None,
    dpg_csv: Annotated[
        Path | None, typer.Option("--dpg-csv", help="DPG-Bench's table of questions, if not fetched.")
    ] = None,
) -> None:
    """Find captions that ask for what a benchmark asks for, and write the list without them.

    With --out results/RECIPE the report shows the audit beside the scores.
    Example: twinbench audit --captions captions.txt --bench geneval,dpg
    """
    from twinbench import files
    from twinbench.contamination import audit as work
    from twinbench.contamination.prompts import prompts_of
    from twinbench.report.contamination import tables
    from twinbench.report.table import console

    names = words(bench) or []
    if dpg_csv and "dpg" not in names:
        raise UserError(f"--dpg-csv {dpg_csv}: {bench} asks no question of DPG-Bench")
    prompts = [prompt for name in names for prompt in prompts_of(name, dpg_csv)]
    if not prompts:
        raise UserError("--bench names no benchmark; one of geneval, dpg")
    held = work.captions_of(captions)
    texts, by = None, None
    if embed:
        from twinbench.judges.base import Similarity, asked_as, judge

        made = asked_as(Similarity, judge(embed))
        texts, by = made.texts, f"{made.name}/{made.version}"
    matches = work.audit(held.texts, prompts, texts)
    found = work.report(held.texts, prompts, matches, by)
    files.write_json(out / "audit.json", {"source": Path(captions).name, **found})
    left = work.clean(held.lines, matches)
    files.write_text(out / f"clean{held.suffix}", "".join(line + "\n" for line in left))
    for table in tables("", found):
        typer.echo(console(table))
    typer.echo(
        f"{len(held.texts) - len(left)} of {len(held.texts)} captions match; without them: {out}/clean{held.suffix}"
    )
