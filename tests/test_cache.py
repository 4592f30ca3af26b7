"""The cache: it goes on after a kill with the same bytes, knows what it depends on, and trains as the encoders do."""

import os
import shutil
import signal
import time

import families
import pytest
import torch
from families import FAMILIES
from PIL import Image
from small import files, sets, twinbench

from twinbench import plugins
from twinbench.data.cache import Cache, key
from twinbench.data.drawn import Drawn, DrawnConfig
from twinbench.data.loader import Loader
from twinbench.data.samples import Encoded
from twinbench.errors import UserError
from twinbench.ranks import Ranks
from twinbench.sections import BackboneSection, Train
from twinbench.training import caching
from twinbench.training.loop import Trainer


def section(name, **options):
    tree = {"name": name, "model": str(families.folder(name)), "resolution": families.SIDE, **options}
    return BackboneSection.model_validate(tree | ({"pretrained": True} if name == "dit" else {}))


def drawn(name="qwen-image", size=5):
    return Drawn(DrawnConfig(size=size, captions="classes" if name == "dit" else "words"))


def fresh(root, name="qwen-image", size=5, shard=2, **options):
    data = drawn(name, size)
    return Cache(root, key(*caching.pipeline_of(section(name, **options)), data), len(data), shard)


def made(root, name="qwen-image", size=5, shard=2, **options):
    cache = fresh(root, name, size, shard, **options)
    assert list(caching.make(cache, section(name, **options), drawn(name, size)))
    return cache


def equal(a, b):
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cache_says_what_the_encoders_say_bit_for_bit(name, tmp_path):
    network = families.backbone(name)
    cache, data = made(tmp_path, name), drawn(name)
    cached, encoded = cache.open(network.masked), Encoded(data, network)
    rows = [4, 0, 3]
    assert torch.equal(cached.latents(rows), encoded.latents(rows))
    assert cached.latents(rows)[0].shape == network.shape and not torch.equal(*cached.latents([0, 4]))
    assert equal(cached.cond(rows), encoded.cond(rows))
    assert equal(cached.cond(rows), network.encode([data.prompts[i] for i in rows]))
    assert equal(cached.null(3), network.null(3))


def test_words_are_stored_without_padding(tmp_path):
    cache = made(tmp_path)
    counts = [len(cache.open(True).words(i)["text"]) for i in range(5)]
    assert len(set(counts)) > 1
    assert cache.open(True).cond(range(5))["mask"].sum(1).tolist() == counts


class Killed(BaseException):
    pass


def test_after_a_kill_it_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    whole = files(made(tmp_path / "whole").folder)
    asked = []
    words = Encoded.words

    def dies(self, i):
        asked.append(i)
        if i == 3 and asked.count(3) == 1:
            raise Killed
        return words(self, i)

    monkeypatch.setattr(Encoded, "words", dies)
    with pytest.raises(Killed):
        made(tmp_path / "killed")
    cut = fresh(tmp_path / "killed")
    assert cut.missing == [1, 2] and not cut.complete
    (cut.folder / f".{cut.path(1).name}.abc").write_bytes(b"left by a kill")
    assert files(made(tmp_path / "killed").folder) == whole
    assert asked.count(0) == 1 and asked.count(3) == 2  # what was there is not made again


def test_any_number_of_processes_writes_the_same_bytes(tmp_path):
    whole = files(made(tmp_path / "one").folder)
    cache = fresh(tmp_path / "two")
    for rank in (1, 0):
        assert not cache.complete
        list(caching.make(cache, section("qwen-image"), drawn(), Ranks(rank, 2)))
    assert cache.complete and files(cache.folder) == whole


def test_the_key_follows_everything_that_it_depends_on(tmp_path):
    plain = fresh(tmp_path).sha256
    others = {
        "pixels": fresh(tmp_path, resolution=32).sha256,
        "samples": fresh(tmp_path, size=4).sha256,
        "longest prompt": fresh(tmp_path, tokens=20).sha256,
        "precision of words": fresh(tmp_path, text_dtype="bfloat16").sha256,
        "family": fresh(tmp_path, "sana").sha256,
    }
    for part, file in [("text_encoder", "model"), ("vae", "diffusion_pytorch_model"), ("tokenizer", "tokenizer")]:
        copy = shutil.copytree(families.folder("qwen-image"), tmp_path / part)
        path = next((copy / part).glob(f"{file}.*"))
        content = bytearray(path.read_bytes())
        content[-2] ^= 1
        path.write_bytes(content)
        others[part] = fresh(tmp_path, model=str(copy)).sha256
    assert len({plain, *others.values()}) == 1 + len(others), others
    transformer = shutil.copytree(families.folder("qwen-image"), tmp_path / "transformer")
    shutil.rmtree(transformer / "transformer")
    assert fresh(tmp_path, model=str(transformer)).sha256 == plain  # the network that is trained is not in it


def test_the_template_of_the_prompts_is_in_the_key(tmp_path, monkeypatch):
    import diffusers

    plain = fresh(tmp_path).sha256
    pipeline = diffusers.QwenImagePipeline

    def encode_prompt(self, *args, **options):
        return pipeline._get_qwen_prompt_embeds(self, *args)

    monkeypatch.setattr(pipeline, "encode_prompt", encode_prompt)
    assert fresh(tmp_path).sha256 != plain


def test_the_order_of_samples_knows_nothing_of_shards_and_processes(tmp_path):
    network = families.backbone("qwen-image")
    loaders = [Loader(made(tmp_path / str(n), shard=n).open(True), network, 7) for n in (1, 2, 64)]
    loaders.append(Loader(Encoded(drawn(), network), network, 7))
    for step in (0, 3):
        wholes = [loader.batch(step, range(6), 6) for loader in loaders]
        assert all(torch.equal(wholes[0].x, other.x) and equal(wholes[0].cond, other.cond) for other in wholes[1:])
        parts = [loaders[1].batch(step, held, 6) for held in (range(4, 6), range(4))]
        assert torch.equal(torch.cat([parts[1].x, parts[0].x]), wholes[0].x)
    first = [loaders[0].batch(step, range(5), 5).x for step in (0, 1)]
    assert not torch.equal(*first) and torch.equal(*[x.flatten(1).sum(1).sort()[0] for x in first])  # whole epochs


def trainer(folder, samples, network, label="twinflow", **options):
    kind = plugins.method(label)
    train = Train(budget=2, unit="steps", batch=4, micro_batch=2, lr=1e-3, save_every=10)
    folder.mkdir()
    return Trainer(folder, kind(kind.Config(**options)), network, samples, train, 0)


def test_training_from_the_cache_is_training_from_the_encoders(tmp_path):
    cached = trainer(tmp_path / "a", made(tmp_path).open(True), network := families.backbone("qwen-image"))
    rows = [row for row in cached]
    assert not network.codec._held  # neither text encoder nor VAE was loaded
    network = families.backbone("qwen-image")
    encoded = trainer(tmp_path / "b", Encoded(drawn(), network), network)
    for _ in encoded:
        pass
    assert network.codec._held and len(rows) == 2
    ours, theirs = ((tmp_path / name / "weights.safetensors").read_bytes() for name in "ab")
    assert ours == theirs


def test_prompts_alone_train_without_pictures(tmp_path):
    (tmp_path / "p.txt").write_text("a cat\na red bench in the rain\n")
    kind = plugins.dataset("prompts")
    data = kind(kind.Config(path=str(tmp_path / "p.txt")))
    where = section("qwen-image")
    cache = Cache(tmp_path, key(*caching.pipeline_of(where), data), len(data))
    list(caching.make(cache, where, data))
    samples = cache.open(True)
    assert samples.latents([0, 1]) is None
    free = trainer(
        tmp_path / "run", samples, families.backbone("qwen-image"), image_free=True, target="pretrained", cfg_scale=4.0
    )
    assert [row["step"] for row in free] == [1, 2]


def test_what_is_not_whole_or_damaged_is_said(tmp_path):
    cache = made(tmp_path)
    content = cache.path(1).read_bytes()
    cache.path(1).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="shard-00001"):
        cache.open(True).latents([2])
    (cache.folder / "index.json").write_text("{")
    with pytest.raises(UserError, match=r"index\.json"):
        fresh(tmp_path)


def test_training_names_the_command_that_makes_the_cache(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    data = drawn(size=2)
    for i in range(2):
        Image.fromarray(data.picture(i)).save(tmp_path / "data" / f"{i}.png")
        (tmp_path / "data" / f"{i}.txt").write_text(data.prompts[i])
    place = sets("data.kind=images", "data.captions=beside", f"data.path={tmp_path / 'data'}")
    where = ["--recipe", "qwen-image", "--tiny", "--runs", tmp_path / "runs", *place]
    assert twinbench("train", "twinflow", *where) == 2
    told = capsys.readouterr().err
    assert "0 of 1 shards" in told and "twinbench cache --recipe qwen-image-tiny" in told
    assert twinbench("cache", *where) == 0
    assert twinbench("train", "twinflow", *where) == 0
    assert twinbench("cache", "--recipe", "moons") == 2 and "embedded world" in capsys.readouterr().err


def test_a_killed_process_leaves_whole_shards_alone(tmp_path):
    whole = files(made(tmp_path / "whole", size=12).folder)
    cache = fresh(tmp_path / "killed", size=12)
    child = os.fork()
    if not child:
        try:
            made(tmp_path / "killed", size=12)
        finally:
            os._exit(0)
    while len(cache.missing) == len(cache):
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    left = {name: value for name, value in files(cache.folder).items() if not name.startswith(".")}
    assert left.items() <= whole.items() and "shard-00000.safetensors" in left
    assert files(made(tmp_path / "killed", size=12).folder) == whole
