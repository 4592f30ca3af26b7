"""What a short caption asks for, in GenEval's words: objects with number and colour, and where the first stands.

A caption is read only if nothing of it remains: "an image of two red cups" is, "two red cups by the sea" is not, since
it asks for more than GenEval can.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from twinbench.data.captions import CONVERSE
from twinbench.data.geneval import CLASSES, COLORS, plural

_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
COUNTS = {word: n for n, word in enumerate(_NUMBERS, 1)}
FILLER = {  # words that ask for nothing
    *("a", "an", "the", "single", "some", "another", "this", "that", "it", "there", "is", "are", "and", "with", "of"),
    *("photo", "photos", "photograph", "picture", "pictures", "image", "rendering", "realistic", "photorealistic"),
    *("in", "shows", "showing", "placed", "positioned", "standing", "located"),
    *("color", "colour", "colored", "coloured"),
}
RELATIONS = {  # longest first
    "to the left side of": "left of",
    "on the left side of": "left of",
    "to the left of": "left of",
    "on the left of": "left of",
    "left of": "left of",
    "to the right side of": "right of",
    "on the right side of": "right of",
    "to the right of": "right of",
    "on the right of": "right of",
    "right of": "right of",
    "on top of": "above",
    "above": "above",
    "below": "below",
    "beneath": "below",
    "underneath": "below",
    "under": "below",
}
OTHER_NAMES = {  # COCO's own name of a class that GenEval renamed, and other spellings
    "mouse": "computer mouse",
    "remote": "tv remote",
    "remote control": "tv remote",
    "keyboard": "computer keyboard",
    "television": "tv",
    "hair dryer": "hair drier",
    "cellphone": "cell phone",
    "mobile phone": "cell phone",
    "sofa": "couch",
    "plane": "airplane",
    "doughnut": "donut",
}
IRREGULAR = {"people": "person", "mice": "computer mouse"}  # plurals


@dataclass(frozen=True)
class Thing:
    """An object that is asked for; count 0: several, nobody says how many."""

    name: str
    count: int = 1
    color: str = ""


@dataclass(frozen=True)
class Scene:
    """The objects in the caption's order, and the relation of the first to the second."""

    things: tuple[Thing, ...]
    relation: str = ""

    @property
    def unordered(self) -> tuple[frozenset[tuple[Thing, int]], str, str]:
        """Equal for scenes that ask for the same: "A left of B" and "B right of A", "A and B" and "B and A"."""
        bag = frozenset((thing, self.things.count(thing)) for thing in self.things)
        if not self.relation:
            return bag, "", ""
        flip = self.relation in ("right of", "below")
        return bag, CONVERSE[self.relation] if flip else self.relation, self.things[1 if flip else 0].name


def normalized(text: str) -> str:
    """Lower case, letters and digits only, single spaces."""
    return " ".join(re.sub(r"[^\w\s]|_", " ", text.lower()).split())


def scene(caption: str) -> Scene | None:
    """The scene of a caption, None if it says more, less or other than objects, numbers, colours and one relation."""
    words = normalized(caption).split()
    things: list[Thing] = []
    relation, count, color, at = "", None, "", 0
    while at < len(words):
        name, said, length = _thing(words, at)
        word = words[at]
        if word in COLORS and _thing(words, at + length if name else at + 1)[0] and not color:
            color, at = word, at + 1  # an orange cat; of "an orange orange" the first
        elif name:
            number = count if count is not None else said
            things.append(Thing(name, number, color))
            count, color, at = None, "", at + length
        elif found := _relation(words, at):
            if relation or len(things) != 1:
                return None
            relation, at = RELATIONS[found], at + len(found.split())
        elif word in COUNTS or (word.isdigit() and 0 < int(word) <= 99):
            count, at = COUNTS.get(word) or int(word), at + 1
        elif word in COLORS or word in FILLER:
            color, count = (word, count) if word in COLORS else (color, 1 if word in ("a", "an") else count)
            at += 1
        else:
            return None
    if not things or color or (relation and len(things) != 2):
        return None
    return Scene(tuple(things), relation)


def _relation(words: list[str], at: int) -> str:
    return next((phrase for phrase in RELATIONS if words[at : at + len(phrase.split())] == phrase.split()), "")


def _thing(words: list[str], at: int) -> tuple[str, int, int]:
    """The class named at this word, how many its form says (0: several), its length in words; ("", 0, 0) if none."""
    forms = _forms()
    for length in (3, 2, 1):
        if found := forms.get(" ".join(words[at : at + length]) if at + length <= len(words) else ""):
            return *found, length
    return "", 0, 0


@cache
def _forms() -> dict[str, tuple[str, int]]:
    """Every spelling of every class: (class, 1 for the singular or 0)."""
    out: dict[str, tuple[str, int]] = {}
    singular = {**{name: name for name in CLASSES}, **OTHER_NAMES}
    for word, name in singular.items():
        several = {plural(word), word + "s", re.sub(r"(s|x|z|ch|sh)$", r"\1es", word), re.sub(r"fe?$", "ves", word)}
        for form in several - {word}:
            out[form] = (name, 0)
    out |= {word: (name, 0) for word, name in IRREGULAR.items()}
    return out | {word: (name, 1) for word, name in singular.items()}
