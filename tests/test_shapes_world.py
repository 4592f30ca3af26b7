"""The shapes world against its exact judge: what is drawn is what is asked, read and scored."""

import numpy as np
import pytest
import torch

from twinbench.benchmarks import geneval
from twinbench.benchmarks.shapes import ShapesGenEval
from twinbench.data import captions as words
from twinbench.data import geneval as geneval_words
from twinbench.data.base import Request, from_bytes
from twinbench.data.captions import COLOR_NAMES, COUNTS, RELATIONS, SHAPES, TASKS, captions, split, tokens
from twinbench.data.shapes import CELL, OBJECT, PLACEMENTS, SIZE, Shapes, compose, render, scenes
from twinbench.judges.shapes import ShapesDetector

SPLITS = ("evaluation", "validation", "heldout")
PARTS = [(task, name) for task in TASKS for name in SPLITS if split(task, name)]
EVERY = [caption for task in TASKS for caption in captions(task)]


def draw(asked, seed=0):
    return torch.from_numpy(render(*compose(asked, np.random.default_rng(seed))))


def judge(asked, x):
    """The benchmark's rows for pictures x in [-1, 1], stored as bytes as an evaluation stores them."""
    requests = [Request(f"k/{i}", c.metadata()["prompt"], 0, c.task) for i, c in enumerate(asked)]
    return ShapesGenEval(Shapes).judge(Shapes.pixels(x), requests).items


def rate(rows, key="correct"):
    return np.mean([row[key] for row in rows])


def repeated(pool, n=150):
    return [pool[i % len(pool)] for i in range(n)]


# ---- the judge ----


@pytest.mark.parametrize("task, name", PARTS)
def test_ground_truth_is_judged_right(task, name):
    asked = repeated(split(task, name))
    rows = judge(asked, draw(asked))
    assert rate(rows) >= 0.99 and rate(rows, "strict") >= 0.99
    assert all(row["tag"] == task and not row["reason"] for row in rows)


def test_pictures_of_other_captions_are_judged_wrong():
    """Official rules forgive what is not asked for, so a few are right by chance: "a circle" is in many pictures."""
    asked = [caption for task in TASKS for caption in repeated(split(task, "evaluation"), 100)]
    order = np.random.default_rng(0).permutation(len(asked))
    rows = judge([asked[i] for i in order], draw(asked))
    assert geneval.summarize(rows)["overall"] < 0.12 and rate(rows, "strict") < 0.06


@pytest.mark.parametrize("noise", [0.05, 0.1])
def test_the_judge_is_not_misled_by_noise(noise):
    asked = [caption for task in TASKS for caption in repeated(split(task, "evaluation"), 40)]
    x = draw(asked).float()
    x = x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert rate(judge(asked, x)) >= 0.97


def test_gray_and_pure_noise_show_nothing():
    asked = repeated(split("single_object", "evaluation"), 40)
    x = torch.zeros(40, 3, SIZE, SIZE)
    assert rate(judge(asked, x)) == 0
    assert rate(judge(asked, x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))) < 0.12


def lonely():
    """Pictures of one object, in the first cell."""
    asked = repeated(captions("colors"), 42)
    kinds, paints = np.full((42, 4), -1), np.full((42, 4), -1)
    kinds[:, 0], paints[:, 0] = [c.shape for c in asked], [c.color for c in asked]
    return asked, kinds, paints


@pytest.mark.parametrize("strength, seen", [(0.1, False), (0.4, True), (1.0, True)])
def test_a_second_object_faint_or_plain_fails_the_strict_reading_alone(strength, seen):
    asked, kinds, paints = lonely()
    ghost, shade = np.full_like(kinds, -1), np.full_like(paints, -1)
    ghost[:, 3], shade[:, 3] = (kinds[:, 0] + 1) % len(SHAPES), paints[:, 0]
    rows = judge(asked, torch.from_numpy(render(kinds, paints) + strength * render(ghost, shade)))
    assert rate(rows) == 1 and rate(rows, "strict") == (not seen)
    assert all(row["reason"].startswith("strict: ") for row in rows) == seen


def test_an_object_too_many_fails_counting_by_the_official_rule():
    asked = [caption for caption in captions("counting") if caption.count < 4]
    kinds, paints = compose(asked, np.random.default_rng(0))
    free = (kinds < 0).argmax(1)
    kinds[np.arange(len(asked)), free] = [c.shape for c in asked]
    paints[np.arange(len(asked)), free] = paints.max(1)
    rows = judge(asked, torch.from_numpy(render(kinds, paints)))
    assert rate(rows) == 0 and all(f"expected {SHAPES[c.shape]}<" in r["reason"] for c, r in zip(asked, rows))


def test_another_colour_or_the_mirrored_relation_is_wrong():
    asked, kinds, paints = lonely()
    assert rate(judge(asked, torch.from_numpy(render(kinds, (paints + (paints >= 0)) % len(COLOR_NAMES))))) == 0
    asked = [c for c in captions("position") if c.relation < 2]
    x = draw(asked)
    assert rate(judge(asked, x)) == 1 and rate(judge(asked, x.flip(3))) == 0


def test_bytes_keep_every_picture():
    x = draw(EVERY[:200])
    assert torch.equal(from_bytes(Shapes.pixels(x)).round(), x.float())


# ---- the words ----


def test_the_words_are_genevals():
    assert set(COLOR_NAMES) <= set(geneval_words.COLORS)
    assert RELATIONS == geneval_words.RELATIONS and TASKS == geneval_words.TASKS
    assert {c["include"][0]["count"] for c in geneval_words.prompts() if c["tag"] == "counting"} == set(COUNTS)


def in_genevals_words(caption):
    """The record that GenEval's own prompt builder makes of a caption."""
    first = geneval_words._clause(SHAPES[caption.shape], caption.count)
    if caption.color >= 0:
        first["color"] = COLOR_NAMES[caption.color]
    if caption.shape2 < 0:
        return geneval_words._prompt(caption.task, [first])
    second = geneval_words._clause(SHAPES[caption.shape2])
    if caption.color2 >= 0:
        second["color"] = COLOR_NAMES[caption.color2]
    if caption.relation < 0:
        return geneval_words._prompt(caption.task, [first, second])
    return geneval_words._prompt(caption.task, [second, {**first, "position": [RELATIONS[caption.relation], 0]}])


def test_every_caption_is_what_genevals_builder_writes():
    for caption in EVERY:
        assert caption.metadata() == in_genevals_words(caption), caption


def test_a_prompt_says_exactly_one_caption_and_its_tokens_say_it_too():
    prompts = [caption.metadata()["prompt"] for caption in EVERY]
    assert len(set(prompts)) == len(EVERY) == 6 + 30 + 18 + 42 + 120 + 1260
    assert len({tuple(tokens(prompt)) for prompt in prompts}) == len(EVERY)
    assert all(words.caption_of(prompt) == caption for prompt, caption in zip(prompts, EVERY, strict=True))


def test_tokens_say_what_the_caption_says():
    for c in EVERY:
        said = [words.VOCABULARY[i] for i in tokens(c.metadata()["prompt"])]
        place = RELATIONS[c.relation] if c.relation >= 0 else ""
        color = COLOR_NAMES[c.color] if c.color >= 0 else ""
        color2 = COLOR_NAMES[c.color2] if c.color2 >= 0 else ""
        second = ["one", color2, SHAPES[c.shape2], words.CONVERSE.get(place, "")]
        assert said[:4] == [geneval_words.number(c.count), color, SHAPES[c.shape], place]
        assert said[4:] == (second if c.shape2 >= 0 else [""] * 4)


def test_silence_is_all_zero_and_a_foreign_word_is_named():
    assert tokens("") == [0] * Shapes.slots
    assert all(0 < max(tokens(c.metadata()["prompt"])) < Shapes.vocabulary for c in EVERY)
    with pytest.raises(ValueError, match="'zebra'"):
        tokens("a photo of a zebra")


# ---- the splits ----


def test_splits_share_no_caption_and_together_are_all():
    for task in TASKS:
        parts = [set(split(task, name)) for name in SPLITS]
        assert sum(map(len, parts)) == len(captions(task)) and set.union(*parts) == set(captions(task))
        assert all(c.heldout for c in parts[2]) and not any(c.heldout for c in parts[0] | parts[1])
        assert parts[0] and parts[1]
    assert {task for task in TASKS if split(task, "heldout")} == {"counting", "colors", "position", "color_attr"}


def test_requests_ask_each_split_under_its_own_name_with_two_copies():
    for kind, names in (("evaluation", {"evaluation", "heldout"}), ("validation", {"evaluation"})):
        requests = Shapes.requests(kind)
        assert {r.split for r in requests} == names
        assert len({(r.key, r.copy) for r in requests}) == len(requests)
        assert all(words.caption_of(r.prompt) in split(r.tag, r.key.partition("/")[0]) for r in requests)
        assert {r.key.partition("/")[0] for r in requests} == ({"validation"} if kind == "validation" else names)
        assert {r.copy for r in requests} == {0, 1}


# ---- what training never shows ----


@pytest.fixture(scope="module")
def training():
    return scenes(60_000, 0)


def facts(kinds, paints):
    """What pictures show: (shape, colour), (shape, count) of lone kinds, (shape, relation, shape) of pairs."""
    colors = set(zip(kinds[kinds >= 0].tolist(), paints[kinds >= 0].tolist(), strict=True))
    counts, relations = set(), set()
    objects = (kinds >= 0).sum(1)
    for kind in range(len(SHAPES)):
        here = (kinds == kind).sum(1)
        counts |= {(kind, int(n)) for n in np.unique(here[(here == objects) & (here > 1)])}
    both = kinds[objects == 2]
    for r, cells in enumerate(PLACEMENTS):
        for a, b in cells:
            shown = (both[:, a] >= 0) & (both[:, b] >= 0) & (both[:, a] != both[:, b])
            relations |= {(int(x), r, int(y)) for x, y in np.unique(both[shown][:, [a, b]], axis=0)}
    return colors, counts, relations


def heldout():
    colors = {(c.shape, c.color) for c in captions("colors") if c.heldout}
    counts = {(c.shape, c.count) for c in captions("counting") if c.heldout}
    relations = {(c.shape, c.relation, c.shape2) for c in captions("position") if c.heldout}
    return colors, counts, relations


def all_facts():
    colors = {(c.shape, c.color) for c in captions("colors")}
    counts = {(c.shape, c.count) for c in captions("counting")}
    relations = {(c.shape, c.relation, c.shape2) for c in captions("position")}
    return colors, counts, relations


def test_no_training_caption_is_held_out_and_every_other_one_occurs_in_kind(training):
    prompts = set(training[2])
    seen = {words.caption_of(prompt) for prompt in prompts}
    assert not any(caption.heldout for caption in seen)
    for task in set(TASKS) - {"color_attr"}:
        assert {c for c in captions(task) if not c.heldout} <= seen
    spoken = {word for prompt in prompts for word in prompt.split()}
    assert {*COLOR_NAMES, *SHAPES, "left", "right", "above", "below", "two", "three", "four"} <= spoken


def test_training_pictures_show_all_that_is_not_held_out_and_nothing_that_is(training):
    shown = facts(*training[:2])
    for seen, hidden, every in zip(shown, heldout(), all_facts(), strict=True):
        assert hidden and seen == every - hidden


def test_each_part_of_a_held_out_composition_is_shown(training):
    colors, counts, relations = facts(*training[:2])
    assert {s for s, _ in colors} == set(range(6)) and {c for _, c in colors} == set(range(7))
    assert {n for _, n in counts} == set(COUNTS) and {s for s, _ in counts} == set(range(6))
    assert {r for _, r, _ in relations} == set(range(4))


def test_the_judge_finds_nothing_held_out_in_training_pictures(training):
    hidden_colors, hidden_counts, hidden_relations = heldout()
    kinds, paints, prompts = (part[:2500] for part in training)
    for found, prompt in zip(ShapesDetector()(render(kinds, paints).astype(np.float32)), prompts, strict=True):
        caption = words.caption_of(prompt)
        assert len(found) == caption.objects
        assert geneval.verdict(caption.metadata(), found, threshold=0.0, counting_threshold=0.0) == (True, "")
        seen = [(SHAPES.index(f.label), COLOR_NAMES.index(f.color)) for f in found]
        assert not hidden_colors & set(seen)
        assert (seen[0][0], len(seen)) not in hidden_counts or len({s for s, _ in seen}) > 1
        if len(found) == 2 and seen[0][0] != seen[1][0]:
            for a, b in ((0, 1), (1, 0)):
                stands = {RELATIONS.index(r) for r in geneval.relation(found[a].box, found[b].box)}
                assert not {(seen[a][0], r, seen[b][0]) for r in stands} & hidden_relations


def test_pictures_of_held_out_captions_do_show_them():
    """The same reading of pictures finds what is held out where it is asked for: the tests above could fail."""
    asked = [c for task in ("colors", "counting", "position") for c in split(task, "heldout")]
    for seen, hidden in zip(facts(*compose(asked, np.random.default_rng(0))), heldout(), strict=True):
        assert hidden <= seen


# ---- the picture ----


def test_placements_are_genevals_relations_of_the_drawn_boxes():
    for a in range(4):
        for b in set(range(4)) - {a}:
            for first in range(len(SHAPES)):
                kinds, paints = np.full((1, 4), -1), np.full((1, 4), -1)
                kinds[0, [a, b]], paints[0, [a, b]] = [first, (first + 1) % 6], [0, 1]
                found = {f.label: f for f in ShapesDetector()(render(kinds, paints).astype(np.float32))[0]}
                boxes = [found[SHAPES[k]].box for k in (first, (first + 1) % 6)]
                assert geneval.relation(*boxes) == {
                    name for name, cells in zip(RELATIONS, PLACEMENTS, strict=True) if (a, b) in cells
                }


def test_an_object_fills_its_cell_and_leaves_the_rest_gray():
    for cell in range(4):
        kinds, paints = np.full((1, 4), -1), np.full((1, 4), -1)
        kinds[0, cell], paints[0, cell] = SHAPES.index("square"), COLOR_NAMES.index("yellow")
        picture = render(kinds, paints)[0]
        y, x = CELL * (cell // 2), CELL * (cell % 2)
        inside = picture[:, y : y + OBJECT, x : x + OBJECT]
        assert (inside == np.array([1, 1, -1])[:, None, None]).all()
        assert np.abs(picture).sum() == np.abs(inside).sum()


def test_the_world_is_a_function_of_its_seed():
    make = lambda seed: Shapes(Shapes.Config(size=500, seed=seed))  # noqa: E731
    assert make(3).sha256() == make(3).sha256() != make(4).sha256()
