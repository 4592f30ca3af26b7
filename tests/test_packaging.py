"""What is installed: the wheel and the source archive hold all of the program and nothing else; the core knows no
baseline."""

import ast
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from twinbench import plugins

ROOT = Path(__file__).parents[1]
CORE = sorted((ROOT / "twinbench").rglob("*.py"))
LONGEST = 270  # lines of a file
MAPPED = {"baselines": "baselines", "recipes": "recipes", "published": "results"}  # packages that lie elsewhere


def tracked():
    call = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"]
    try:
        listed = subprocess.run(call, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a checkout: there is nothing to build from")
    return [name for name in listed if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def tree():
    return tracked()


@pytest.fixture(scope="module")
def built(tmp_path_factory, tree):
    """A wheel and a source archive, built from a copy of the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tree:
        if not name.startswith(("runs/", "docs/", "results/")) or name == "results/published.csv":
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    call = [sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel", "--outdir", str(out), str(source)]
    ended = subprocess.run(call, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": ""})
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    (wheel,), (archive,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, archive


def installed_name(name):
    """Where a file of the checkout lies when installed; None if it is not part of the package."""
    folder = name.partition("/")[0]
    if folder in ("baselines", "recipes") and name.endswith((".py", ".yaml")):
        return f"twinbench/{name}"
    if name == "results/published.csv":
        return "twinbench/published/published.csv"
    if name.startswith("twinbench/weights/") or (folder == "twinbench" and name.endswith((".py", ".j2"))):
        return name
    return None


def test_the_wheel_holds_the_package_and_nothing_else(built, tree):
    with zipfile.ZipFile(built[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    want = {place for name in tree if (place := installed_name(name))}
    assert names == want
    assert {"twinbench/baselines/rcgm.py", "twinbench/recipes/shapes.yaml", "twinbench/cli.py"} <= names
    assert {name.rsplit("/", 1)[1] for name in names if name.endswith(".safetensors")} >= {
        "shapes-encoder.safetensors",
        "digits-encoder.safetensors",
    }


def test_the_wheel_holds_the_very_bytes_of_the_checkout(built, tree):
    with zipfile.ZipFile(built[0]) as wheel:
        for name in tree:
            if place := installed_name(name):
                assert wheel.read(place) == (ROOT / name).read_bytes(), name


def test_the_wheel_announces_every_plug_in_and_each_is_in_it(built):
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with zipfile.ZipFile(built[0]) as wheel:
        (path,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
        text, names = wheel.read(path).decode(), set(wheel.namelist())
        groups = {"console_scripts": project["scripts"], **project["entry-points"]}
        for group, points in groups.items():
            assert f"[{group}]" in text
            for name, target in points.items():
                assert f"{name} = {target}" in text
                module, _, attribute = target.partition(":")
                file = module.replace(".", "/") + ".py"
                assert file in names and attribute in defined(wheel.read(file).decode())


def defined(source):
    return {node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef | ast.FunctionDef)}


def test_the_wheel_runs_from_where_it_is_unpacked(built, tmp_path):
    """Without the checkout: the recipes, the plug-ins and the weights are those of the wheel."""
    with zipfile.ZipFile(built[0]) as wheel:
        wheel.extractall(tmp_path)
    code = (
        "import twinbench, twinbench.baselines, sys; from twinbench import cli\n"
        "assert twinbench.__file__.startswith(sys.argv[1]) and twinbench.baselines.__file__.startswith(sys.argv[1])\n"
        "from pathlib import Path; from twinbench.report import published\n"
        "assert len(published.read(published.place(Path('none'), 'published'))) == 437\n"
        "sys.argv = ['twinbench', 'show', 'moons', 'rcgm']; cli.main()\n"
    )
    call = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}", str(tmp_path)]
    ended = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert ended.returncode == 0 and "method: rcgm" in ended.stdout, ended.stderr


def test_the_source_archive_builds_the_same_wheel(built):
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(built[0]) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    back = {f"twinbench/{to}/": f"{at}/" for to, at in MAPPED.items()}
    for name in packed:
        source = next((to + name.removeprefix(at) for at, to in back.items() if name.startswith(at)), name)
        assert source in names, source
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names and not any(n.startswith("runs") for n in names)


# ---- how the house is built ----


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_core_imports_no_baseline():
    assert len(CORE) > 30
    assert [p.name for p in CORE for name in imports(p) if "baselines" in name.split(".")] == []


def test_the_baselines_import_only_the_core():
    for path in (ROOT / "baselines").glob("*.py"):
        others = {p.stem for p in path.parent.glob("*.py")} - {path.stem, "__init__"}
        assert not [name for name in imports(path) if "baselines" in name.split(".") or name in others], path.name


LARGE = {"backbones", "distributed", "peft", "diffusers", "transformers", "accelerate"}
PLACES = {"device", "cuda", "cpu", "mps", "is_cuda", "get_device"}
PRECISIONS = {"autocast", "amp", "half", "bfloat16", "float16", "float32", "float64", "float", "double"}
SPLITS = {"fully_shard", "full_tensor", "to_local", "redistribute", "no_sync", "get_rank", "all_reduce"}


def named(path):
    """The attributes, keywords and strings of a file, and the parts of what it imports."""
    yield from (part for name in imports(path) for part in name.split("."))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.partition(":")[0]  # "cuda:0"


def test_a_method_knows_no_device_precision_sharding_or_backbone():
    """Times and tensors follow others: `.to(x.dtype)`, `rng.time_dtype`."""
    methods = [*(ROOT / "baselines").glob("*.py"), *(ROOT / "twinbench/methods").glob("*.py")]
    found = {(p.name, name) for p in methods for name in named(p) if name in LARGE | PLACES | PRECISIONS | SPLITS}
    assert len(methods) > 15 and found == set()


def test_every_package_is_declared():
    import tomllib

    declared = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    real = {".".join(p.parent.relative_to(ROOT).parts) for p in CORE if p.name == "__init__.py"}
    assert declared == real | {f"twinbench.{name}" for name in MAPPED}


def test_no_file_is_too_long_to_read():
    files = [*CORE, *(ROOT / "baselines").glob("*.py")]
    assert {p.name: n for p in files if (n := len(p.read_text().splitlines())) > LONGEST} == {}


@pytest.mark.parametrize("group", plugins.GROUPS)
def test_every_registered_name_can_be_loaded(group):
    for name in plugins.names(group):
        assert callable(getattr(plugins, group.removesuffix("s"))(name))
