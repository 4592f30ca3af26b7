"""Put a finished teacher where the package looks for it, with a JSON that says how it was made.

python -m twinbench.training.ship runs/shapes-teacher/flow-matching-...
"""

from __future__ import annotations

import sys
from pathlib import Path

from twinbench import files, run
from twinbench.weights import FOLDER


def ship(folder: Path) -> Path:
    """Copy the weights of a run to <data kind>-teacher.safetensors in the package, and write its provenance."""
    record = run.read(folder)
    path = FOLDER / f"{record['resolved']['data']['kind']}-teacher.safetensors"
    content = (folder / "weights.safetensors").read_bytes()
    files.replace(path, lambda file: file.write(content))
    keys = (
        "seed",
        "steps",
        "images",
        "network_passes",
        "seconds",
        "cpu_seconds",
        "fingerprint",
        "versions",
        "hardware",
    )
    command = f"twinbench train {record['label']} --recipe {record['recipe']} --seed {record['seed']}"
    made = {"command": command, **{key: record[key] for key in keys}, "sha256": files.sha256(path)}
    files.write_json(path.with_suffix(".json"), made)
    return path


if __name__ == "__main__":
    print(ship(Path(sys.argv[1])))
