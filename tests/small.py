"""Small real things for tests: the command line in this process, a quick recipe's settings, runs of a few steps."""

import hashlib
import json
import sys
from pathlib import Path

import pytest

from twinbench import cli, recipe
from twinbench.training.start import measured, start

QUICK = ("train.budget=3", "train.batch=16", "train.save_every=2")
QUICK += ("backbone.width=16", "backbone.depth=1", "data.size=256")
TINY = ("backbone.weights=none", "backbone.width=16", "backbone.depth=1", "backbone.heads=2")  # patch-transformer


def sets(*items):
    return [word for item in items for word in ("--set", item)]


def twinbench(*words):
    """The command line; returns its exit code. Its output is left to capsys."""
    before = sys.argv
    sys.argv = ["twinbench", *map(str, words)]
    try:
        cli.main()
    except SystemExit as end:
        return end.code
    finally:
        sys.argv = before
    pytest.fail("the command line must end with an exit code")


def resolved(name, label, *items, seed=0):
    return recipe.resolve(recipe.load(name, list(items)), label, seed)


def trained(runs, name, label, *items, seed=0):
    """A finished run; returns its folder."""
    run, trainer = start(resolved(name, label, *items, seed=seed), runs)
    for _ in trainer:
        pass
    run.write(**measured(trainer))
    return run.folder


def files(folder):
    """Every file below a folder, with the hash of its bytes."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def scores(folder):
    """The files below a folder with their hashes, but scores as what they say apart from their seconds."""
    out = {name: value for name, value in files(folder).items() if not Path(name).name.startswith(".")}
    for path in Path(folder).rglob("*.json"):
        said = json.loads(path.read_text())
        out[str(path.relative_to(folder))] = {key: said[key] for key in said.keys() - {"seconds", "git"}}
    return out
