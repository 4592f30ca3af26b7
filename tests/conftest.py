"""One thread a test process: two busy processes of two threads on two cores are four times slower than of one. And what
several rooms of tests stand in."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder in which the package of the painted benchmark is installed."""
    import painted

    return painted.install(tmp_path_factory.mktemp("site"))


@pytest.fixture
def here(site, tmp_path, monkeypatch):
    """An empty working folder; the painted benchmark is found there, as any plug-in is."""
    from twinbench import plugins

    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(tmp_path)
    plugins._group.cache_clear()
    yield tmp_path
    plugins._group.cache_clear()
