"""A method from a package that is not ours: installed somewhere, found by its entry point, trained by its name."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gaussian import mean_velocity
from small import QUICK, sets

from twinbench.flow import Batch
from twinbench.method import Networks, Turn
from twinbench.randomness import Rng

PLUGIN = Path(__file__).parent / "plugin"
DOCS = Path(__file__).parents[1] / "docs"
MOONS = ("--recipe", "moons", *sets(*QUICK))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder into which the package was installed, with its metadata."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(PLUGIN, folder / "source")
    call = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--disable-pip-version-check",
    ]
    ended = subprocess.run([*call, "--target", str(folder / "site"), str(source)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return folder / "site"


def command(site, folder, *words):
    path = os.pathsep.join(p for p in (str(site) if site else "", os.environ.get("PYTHONPATH", "")) if p)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    call = [sys.executable, "-m", "twinbench", *map(str, words)]
    return subprocess.run(call, capture_output=True, text=True, env=environment, cwd=folder, timeout=120)


def test_a_method_of_another_package_is_listed_trained_and_drawn(site, tmp_path):
    assert "halfway" in command(site, tmp_path, "list", "methods").stdout.split()
    done = command(site, tmp_path, "train", "halfway", *MOONS, *sets("methods.halfway.share=0.25"))
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / done.stdout.strip() / "run.json").read_text())
    assert run["method"] == "halfway" and run["resolved"]["config"] == {"share": 0.25}
    drawn = command(
        site, tmp_path, "eval", "halfway", "--nfe", "1", "--limit", "2", *sets("methods.halfway.share=0.25")
    )
    assert drawn.returncode == 0, drawn.stderr


def test_its_settings_are_checked_as_ours_are(site, tmp_path):
    wrong = command(site, tmp_path, "train", "halfway", *MOONS, *sets("methods.halfway.shar=0.25"))
    assert wrong.returncode == 2 and "did you mean 'share'?" in wrong.stderr and "Traceback" not in wrong.stderr


def test_without_the_package_the_method_is_unknown(tmp_path):
    missing = command(None, tmp_path, "train", "halfway", *MOONS)
    assert missing.returncode == 2 and "'halfway'" in missing.stderr


def test_the_page_shows_the_package_as_it_is():
    page = (DOCS / "add-a-method.md").read_text()
    for name in ("halfway.py", "pyproject.toml"):
        assert (PLUGIN / name).read_text().strip() in page


def test_an_exact_flow_map_is_its_fixed_point():
    spec = importlib.util.spec_from_file_location("halfway", PLUGIN / "halfway.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["halfway"] = module
    spec.loader.exec_module(module)
    method = module.Halfway(module.Halfway.Config(share=0.5))
    total = 64
    x = torch.randn(total, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch = Batch(x, {}, {})
    draws = method.draw(batch, Rng(0, 0, "student", range(total), total, (3,), torch.float64), Turn())
    terms = method.loss(Networks(mean_velocity, target=mean_velocity), batch, draws, Turn()).losses
    assert terms["halfway"].rows.max() < 1e-24 and terms["flow"].rows.min() > 0
