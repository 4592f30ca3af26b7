"""Aspect buckets: few shapes, little cut away, one shape a batch, and an order that is a function of the step alone."""

from collections import Counter
from itertools import accumulate, pairwise

import families
import numpy as np
import pytest
import torch
from families import WORDED
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from processes import together, train
from small import sets, twinbench
from test_cache import equal, section

from twinbench import plugins
from twinbench.data.buckets import PARTS, buckets, covering, grouped, nearest
from twinbench.data.cache import Cache, key
from twinbench.data.drawn import Drawn, DrawnConfig
from twinbench.data.loader import Loader, Order, Stream
from twinbench.data.samples import Encoded
from twinbench.errors import UserError
from twinbench.recipe import load, resolve
from twinbench.tensors import read_tensors
from twinbench.training import caching
from twinbench.training.networks import make_data

SIZES = [(64, 64), (50, 90), (200, 120), (70, 71), (40, 300)]  # of the pictures below, in turn
sides = st.integers(1, 3000)

# ---- which shapes ----


@given(cells=st.integers(1, 128), cell=st.sampled_from([1, 16, 32]), widest=st.floats(1, 4))
def test_buckets_have_the_area_of_the_square_or_a_little_less(cells, cell, widest):
    side, sizes = cells * cell, buckets(cells * cell, cell, widest)
    assert sizes[0] == (side, side) and len(sizes) == len(set(sizes))
    for h, w in sizes:
        assert (w, h) in sizes and max(h, w) <= widest * min(h, w) + 1e-6
        assert h % cell == w % cell == 0
        assert side * side - min(h, w) * max(cell, side / PARTS) < h * w <= side * side


def test_buckets_of_512_and_1024_pixels_are_alike():
    small = buckets(512, 16, 2)
    assert small == [(h // 2, w // 2) for h, w in buckets(1024, 16, 2)] and len(small) == 9
    assert buckets(1024, 16) == [(1024, 1024)]


@given(h=sides, w=sides, widest=st.floats(1, 4))
def test_a_picture_goes_to_the_nearest_ratio(h, w, widest):
    sizes = buckets(512, 16, widest)
    here = nearest(sizes, h, w)
    assert nearest(sizes, w, h) == here[::-1]
    gaps = [abs(np.log(h / w) - np.log(a / b)) for a, b in sizes]
    assert abs(np.log(h / w) - np.log(here[0] / here[1])) <= min(gaps) + 1e-9
    assert all(nearest(sizes, *size) == size for size in sizes)


@settings(max_examples=50)
@given(h=st.integers(1, 200), w=st.integers(1, 200), size=st.sampled_from(buckets(64, 4, 4)))
def test_the_picture_covers_its_bucket(h, w, size):
    cut = covering(np.full((h, w, 3), 255, np.uint8), size)
    assert cut.shape == (*size, 3) and (cut == 255).all()


def test_what_is_cut_away_is_as_much_of_both_ends_of_one_side():
    wide = np.zeros((24, 144, 3), np.uint8)
    wide[:, 32:112] = 255  # five parts of nine
    assert (covering(wide, (24, 80)) == 255).all()
    twice = covering(wide.transpose(1, 0, 2), (160, 48))
    assert (twice[8:-8] == 255).all()
    assert covering(wide, (24, 84))[0, :, 0].tolist() == [0] * 2 + [255] * 80 + [0] * 2


# ---- which order ----

counts = st.lists(st.integers(1, 40), min_size=1, max_size=5)


def order_of(counts, seed=0):
    return Order({(i,): range(*ends) for i, ends in enumerate(pairwise(accumulate(counts, initial=0)))}, seed)


@settings(max_examples=50)
@given(counts=counts, total=st.integers(1, 16), epochs=st.integers(1, 6))
def test_every_sample_comes_once_an_epoch_up_to_what_the_next_begins_with(counts, total, epochs):
    order = order_of(counts)
    steps = sum(epochs * n // total for n in counts)
    batches = [order(step, range(total), total) for step in range(steps)]
    ends = np.cumsum(counts)
    assert all(len({np.searchsorted(ends, row, "right") for row in batch}) == 1 for batch in batches)
    seen = Counter(row for batch in batches for row in batch)
    for n, end in zip(counts, ends, strict=True):
        times = [seen[row] for row in range(end - n, end)]
        assert sum(times) == epochs * n // total * total  # by its share, to a batch
        assert max(times) <= epochs and max(times) - min(times) <= 1


@settings(max_examples=50)
@given(counts=counts, step=st.integers(0, 200), total=st.sampled_from([4, 8]), seed=st.integers(0, 3))
def test_a_step_is_the_same_whoever_asks_and_whenever(counts, step, total, seed):
    whole = order_of(counts, seed)(step, range(total), total)
    order = order_of(counts, seed)
    for later in (step + 3, 0):
        order(later, range(total), total)
    for size in (1, 2, 4):  # of processes
        part = total // size
        parts = [range(rank * part, (rank + 1) * part) for rank in range(size)]
        assert [row for held in parts for row in order(step, held, total)] == whole


def test_epochs_and_seeds_have_their_own_orders():
    steps = sum(2 * n // 4 for n in (40, 40, 40))
    turns = [[order_of((40, 40, 40), seed).turn(step, 4)[0] for step in range(steps)] for seed in (0, 1)]
    assert turns[0] != turns[1] and turns[0][:30] != turns[0][30:]


@given(n=st.integers(1, 50), total=st.integers(1, 60), step=st.integers(0, 500))
def test_without_buckets_it_is_one_stream(n, total, step):
    plain = Stream(n, 7, "epoch")(range(step * total, (step + 1) * total))
    assert Order({(): range(n)}, 7)(step, range(total), total) == plain


# ---- what is trained on ----


class Shaped(Drawn):
    """Drawn pictures of many shapes."""

    def picture(self, i):
        h, w = SIZES[i % len(SIZES)]
        return np.asarray(Image.fromarray(super().picture(i)).resize((w, h)))


def shaped(size=12, widest=2.0):
    return Shaped(DrawnConfig(size=size, aspect_buckets=widest))


def made(root, name, data):
    where = section(name)
    cache = Cache(root, key(*caching.pipeline_of(where), data), len(data), 5)
    list(caching.make(cache, where, data))
    return cache


@pytest.mark.parametrize("name", WORDED)
def test_the_cache_gives_the_batches_of_the_pictures(name, tmp_path):
    network, data = families.backbone(name), shaped()
    cached, encoded = made(tmp_path, name, data).open(network.masked), Encoded(data, network)
    assert cached.buckets() == encoded.buckets() and len(cached.buckets()) == 3
    loaders, shapes = [Loader(samples, network, 7) for samples in (cached, encoded)], set()
    for step in range(4):
        a, b = (loader.batch(step, range(4), 4) for loader in loaders)
        assert torch.equal(a.x, b.x) and equal(a.cond, b.cond) and equal(a.null, b.null)
        shapes.add(a.x.shape[2:])
        t = torch.rand(4)
        network(a.x, t, t, a.cond).square().mean().backward()
    assert len(shapes) > 1


def test_latents_are_those_of_the_pictures_cut_to_their_buckets(tmp_path):
    network, data = families.backbone("sd3"), shaped(5)
    encoded = Encoded(data, network)
    assert [tuple(encoded.latent(i).shape[1:]) for i in range(5)] == [(8, 8), (6, 10), (10, 6), (8, 8), (6, 10)]
    pixels = torch.from_numpy(covering(data.picture(1), (48, 80)).copy()).permute(2, 0, 1)[None]
    assert torch.equal(encoded.latent(1), network.latents(pixels)[0])


def test_other_buckets_are_another_cache_and_none_are_the_one_of_before(tmp_path):
    def sha256(widest):
        return Cache(tmp_path, key(*caching.pipeline_of(section("sd3")), shaped(5, widest)), 5).sha256

    assert len({sha256(None), sha256(1.5), sha256(2.0)}) == 3
    plain = key(*caching.pipeline_of(section("sd3")), shaped(5, None))
    assert plain["pictures"]["crop"] == "the middle square, by Lanczos"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The tiny twin of a recipe on a folder of pictures, its cache made; and where it runs."""
    where, data = tmp_path_factory.mktemp("runs"), shaped()
    pictures = tmp_path_factory.mktemp("pictures")
    for i in range(len(data)):
        Image.fromarray(data.picture(i)).save(pictures / f"{i:02d}.png")
        (pictures / f"{i:02d}.txt").write_text(data.prompts[i])
    told = ["data.kind=images", "data.captions=beside", f"data.path={pictures}", "data.aspect_buckets=2"]
    told += [f"data.cache={where}", "train.budget=3"]
    assert twinbench("cache", "--recipe", "z-image-tiny", "--runs", where, *sets(*told)) == 0
    return resolve(load("z-image-tiny", told, where), "twinflow"), where


def end(trainer):
    return read_tensors(trainer.folder / "weights.safetensors")[0] if trainer.progress >= 1 else trainer.state.step


def test_a_resumed_run_and_one_of_two_processes_end_as_one_that_is_neither(recipe, tmp_path):
    settings, where = recipe
    assert set(caching.cache_of(settings.backbone, make_data(settings.data), where).open(True).buckets()) == {
        (6, 10),
        (8, 8),
        (10, 6),
    }
    whole = train(settings, tmp_path / "whole", last=end)
    assert train(settings, tmp_path / "stopped", steps=2, last=end) == 2
    assert equal(train(settings, tmp_path / "stopped", last=end), whole)
    for result in together(lambda: train(settings, tmp_path / "two", last=end)):
        assert result.keys() == whole.keys()
        for name in whole:
            torch.testing.assert_close(result[name], whole[name], rtol=0, atol=1e-5)


def test_who_takes_squares_alone_says_so(tmp_path):
    data = Shaped(DrawnConfig(captions="classes", aspect_buckets=2.0))
    with pytest.raises(UserError, match="square pictures alone"):
        caching.cache_of(section("dit"), data, tmp_path)
    (tmp_path / "p.txt").write_text("a cat\n")
    prompts = plugins.dataset("prompts")
    with pytest.raises(UserError, match="no aspect"):
        prompts(prompts.Config(path=str(tmp_path / "p.txt"), aspect_buckets=2.0))


def test_samples_are_grouped_by_size():
    assert grouped([(2, 1), (1, 2), (2, 1)]) == {(1, 2): [1], (2, 1): [0, 2]}
