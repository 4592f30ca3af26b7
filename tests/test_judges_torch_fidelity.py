"""Inception by two paths, torch-fidelity's network and that of `inception`, from the same random weights."""

import importlib.util

import numpy as np
import pytest
import torch
import torchvision
from cleanfid import inception_pytorch

from twinbench.errors import UserError, WorkError
from twinbench.judges import known
from twinbench.judges.inception import Inception, InceptionSettings
from twinbench.judges.torch_fidelity import TorchFidelity, TorchFidelitySettings

ABSENT = importlib.util.find_spec("torch_fidelity") is None
needed = pytest.mark.skipif(ABSENT, reason="torch-fidelity is not installed (pip install 'twinbench[fidelity]')")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Random weights, normalised so that pictures are told apart."""
    path = tmp_path_factory.mktemp("inception") / "tensors.pth"
    torch.manual_seed(0)
    network = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, init_weights=False).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1
    with torch.no_grad():
        network(torch.nn.functional.interpolate(torch.randn(2, 3, 20, 20), (299, 299)))
    torch.save(network.state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def judges(file):
    """By mode."""
    told = {"weights": file, "device": "cpu"}
    return {m: TorchFidelity(TorchFidelitySettings(mode=m, **told)) for m in ("tensorflow", "torchmetrics")}


def noise(size):
    return np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)


@needed
def test_both_networks_give_the_same_features_of_a_picture_that_needs_no_resizing(file, judges, monkeypatch):
    """`inception` asks pytorch-fid's network here, of which the published TorchScript is another export."""
    state = torch.load(file, weights_only=True)
    monkeypatch.setattr(inception_pytorch, "load_state_dict_from_url", lambda *_, **__: state)
    plain = Inception(InceptionSettings(device="cpu"))
    plain.network = torch.nn.Module()
    plain.network.layers = torch.nn.Sequential(*inception_pytorch.InceptionV3(resize_input=False).eval().blocks)
    pictures = [known.disc("red", 299)[0], noise(299)]
    other = plain(pictures)
    for judge in judges.values():
        told = judge(pictures)
        assert told.shape == (2, 2048) and told.dtype == np.float64
        np.testing.assert_allclose(told, other, rtol=0, atol=1e-4 * other.std())
    assert np.abs(other[0] - other[1]).mean() > 0.1 * other.std()  # what tells no pictures apart would agree as well


@needed
def test_tensorflows_resizing_takes_every_second_pixel_of_a_picture_of_twice_the_size(judges):
    picture = noise(598)
    judge = judges["tensorflow"]
    assert np.array_equal(judge([picture]), judge([picture[::2, ::2]]))


@needed
def test_features_are_those_of_torchmetrics_own_distance(file, judges):
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature_extractor_weights_path=file)
    picture = noise(598)
    theirs = metric.inception(torch.tensor(picture).permute(2, 0, 1)[None]).double().numpy()
    assert np.array_equal(judges["torchmetrics"]([picture]), theirs)


@needed
def test_what_is_no_inception_is_refused_or_fails_the_selftest(judges, tmp_path):
    with pytest.raises(WorkError, match="torch-fidelity fails its self-test"):
        judges["tensorflow"].selftest()
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "x.pth")
    torch.save({"fc.weight": np.random.default_rng}, tmp_path / "code.pth")
    for name in ("x.pth", "code.pth"):
        with pytest.raises(UserError, match="does not hold Inception's tensors"):
            TorchFidelity(TorchFidelitySettings(weights=str(tmp_path / name))).network  # noqa: B018


@pytest.mark.skipif(not ABSENT, reason="torch-fidelity is installed")
def test_its_absence_is_said():
    with pytest.raises(UserError, match=r"torch-fidelity needs torch-fidelity: pip install 'twinbench\[fidelity\]'"):
        _ = TorchFidelity().version
