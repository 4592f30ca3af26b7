"""Pictures judged a second: a batch of them, and one at a time by the same detector.

python benchmarks/detect.py [--weights FOLDER] [--batch 8] [--pictures 16] [--size 512] [--device cuda]

Without weights the detector has GenEval's size and random ones: the time is the same, but that nothing is found.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from twinbench.judges import mask2former
from twinbench.judges.detectors import DetectorSettings, Mask2Former


def seconds(judge: Mask2Former, pictures: list[np.ndarray], at_once: int) -> float:
    """The time of one pass over all pictures: of an accelerator by the clock, after one batch to warm up; of a
    processor what it worked, which others on the machine do not change."""
    clock = time.process_time
    judge.network  # noqa: B018  is loaded
    if judge.device.type == "cuda":
        clock = time.perf_counter
        judge(pictures[:at_once])
        torch.cuda.synchronize()
    begin = clock()
    for start in range(0, len(pictures), at_once):
        judge(pictures[start : start + at_once])  # masks come back to the processor: nothing is left to wait for
    return clock() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    pictures = list(rng.integers(0, 256, (arguments.pictures, arguments.size, arguments.size, 3), np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        if arguments.weights is None:
            torch.manual_seed(0)
            mask2former.network().save_pretrained(Path(folder))
        settings = {"weights": arguments.weights or folder, "device": arguments.device}
        rows = []
        for batch in (1, arguments.batch):
            judge = Mask2Former(DetectorSettings(**settings, batch=batch))
            rows.append([batch, arguments.pictures / seconds(judge, pictures, batch)])
    table = [[batch, f"{rate:.2f}", f"{rate / rows[0][1]:.2f}"] for batch, rate in rows]
    print(f"{arguments.device}, {torch.get_num_threads()} threads, {arguments.size} px")
    print(tabulate(table, ["at once", "pictures/s", "ratio"]))


if __name__ == "__main__":
    main()
