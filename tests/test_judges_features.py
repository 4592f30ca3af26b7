"""Inception's features with clean-fid's resizing; LPIPS; what is said where their weights lack."""

import numpy as np
import pytest
import torch
import torchvision
from cleanfid.resize import build_resizer

from twinbench.errors import UserError, WorkError
from twinbench.judges import inception, known
from twinbench.judges.distances import frechet
from twinbench.judges.inception import Inception, InceptionSettings
from twinbench.judges.lpips import LPIPS, LPIPSSettings


class Layers(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)[:, :, None, None]


class StandIn(torch.nn.Module):
    """As the published network is asked: features of `layers`, or resized inside, or classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        x = torch.nn.functional.interpolate(x, [299, 299], mode="bilinear")
        features = self.layers((x - 128.0) / 128.0).flatten(1)
        return features if return_features else features.softmax(1)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "inception-2015-12-05.pt"
    torch.jit.script(StandIn()).save(str(path))
    return str(path)


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
    path = tmp_path_factory.mktemp("alexnet") / "alexnet.pth"
    torch.manual_seed(0)
    features = torchvision.models.alexnet(weights=None).features
    torch.save({f"features.{name}": value for name, value in features.state_dict().items()}, path)
    return str(path)


def encoder(network, **settings):
    return Inception(InceptionSettings(weights=network, device="cpu", **settings))


@pytest.mark.parametrize("mode", ["clean", "legacy_pytorch"])
def test_features_are_those_of_clean_fid(network, mode):
    from cleanfid.inception_torchscript import InceptionV3W

    pictures = [known.photo("temple"), known.photo("person"), known.disc("red")[0]]
    theirs = InceptionV3W(network.rsplit("/", 1)[0], download=False)
    expected = [theirs_of(theirs, build_resizer(mode)(picture)) for picture in pictures]
    told = encoder(network, mode=mode, batch=2)(pictures)
    assert told.dtype == np.float64 and np.allclose(told, expected, atol=1e-6)
    assert np.array_equal(encoder(network, mode=mode, batch=2)(pictures[1:]), told[1:])


def theirs_of(network, resized):
    """As clean-fid's wrapper asks; it reshapes to 2048 features, the stand-in has 48."""
    x = torch.tensor(resized).permute(2, 0, 1)[None].float()
    return network.layers.forward((x - 128) / 128).flatten().double().numpy()


def test_modes_are_different_metrics(network):
    picture = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    clean, bilinear, inside = (
        encoder(network, mode=mode)([picture]) for mode in ("clean", "legacy_pytorch", "legacy_tensorflow")
    )
    assert not np.allclose(clean, bilinear, atol=1e-3) and np.allclose(bilinear, inside, atol=1e-3)
    assert len({encoder(network, mode=mode).version for mode in ("clean", "legacy_pytorch")}) == 2


def test_equal_sets_have_no_distance_and_faded_ones_have(network):
    pictures = [known.disc(color)[0] for color in known.RGB]
    features = encoder(network)(pictures)
    faded = encoder(network)([picture // 2 for picture in pictures])
    assert frechet(features, features) == pytest.approx(0, abs=1e-6) and frechet(features, faded) > 0.1


def test_another_network_fails_the_selftest(network, tmp_path):
    with pytest.raises(WorkError, match="inception fails its self-test"):
        encoder(network).selftest()
    (tmp_path / "x.pt").write_bytes(b"no network")
    with pytest.raises(UserError, match="no TorchScript network"):
        encoder(str(tmp_path / "x.pt"))([known.photo("temple")])


def test_the_known_class_passes_the_selftest(tmp_path):
    class Uniform(StandIn):
        def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
            return torch.nn.functional.one_hot(torch.tensor([866]), 1008).float()

    torch.jit.script(Uniform()).save(str(tmp_path / "u.pt"))
    encoder(str(tmp_path / "u.pt")).selftest()
    assert inception.UNIFORM == 866


def test_lpips_is_torchmetrics_with_the_given_alexnet(alexnet):
    from torchmetrics.functional.image.lpips import _LPIPS

    judge = LPIPS(LPIPSSettings(weights=alexnet, device="cpu", batch=2))
    reference = _LPIPS(net="alex", pnet_rand=True)
    state = torch.load(alexnet, weights_only=True)
    for i, place in enumerate((0, 3, 6, 8, 10), 1):
        layer = reference.net.get_submodule(f"slice{i}.{place}")
        layer.load_state_dict({name: state[f"features.{place}.{name}"] for name in ("weight", "bias")})
    a = [known.photo("temple")[:64, :96], known.disc("red", 64)[0], known.photo("flower")[:64, :96]]
    b = [known.photo("flower")[:64, :96], known.disc("blue", 64)[0], known.photo("flower")[:64, :96]]
    expected = []
    for x, y in zip(a, b, strict=True):
        x, y = (torch.tensor(p.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1 for p in (x, y))
        expected.append(float(reference(x, y)))
    told = judge(a, b)
    assert told == pytest.approx(expected, rel=1e-4, abs=1e-7) and told[2] == 0 < told[1]
    with pytest.raises(ValueError, match="two sizes"):
        judge(a[:1], [known.photo("person")])


def test_lpips_with_another_alexnet_fails_the_selftest(alexnet, tmp_path):
    with pytest.raises(WorkError, match=r"lpips fails its self-test: .* not 7be5be79"):
        LPIPS(LPIPSSettings(weights=alexnet)).selftest()
    with pytest.raises(UserError, match="is no AlexNet"):
        torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "x.pth")
        LPIPS(LPIPSSettings(weights=str(tmp_path / "x.pth"))).network  # noqa: B018


@pytest.mark.parametrize(
    "kind, file, asset", [(Inception, "inception-2015-12-05.pt", "inception"), (LPIPS, "alexnet-owt", "alexnet")]
)
def test_missing_weights_are_one_sentence_that_says_what_to_fetch(kind, file, asset, monkeypatch, tmp_path):
    monkeypatch.setenv("TWINBENCH_ASSETS", str(tmp_path))
    with pytest.raises(UserError) as error:
        _ = kind().version
    assert file in str(error.value) and f"twinbench fetch {asset}" in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_among_the_assets_are_found(monkeypatch, tmp_path, alexnet):
    from pathlib import Path

    from twinbench.files import sha256

    monkeypatch.setenv("TWINBENCH_ASSETS", str(tmp_path))
    place = tmp_path / "weights" / "alexnet-owt-7be5be79.pth"
    place.parent.mkdir()
    place.write_bytes(Path(alexnet).read_bytes())
    assert LPIPS().identity["weights"] == sha256(Path(alexnet))
