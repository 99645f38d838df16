"""Scenes, what one training picture shows, and captions, one of many ways to say it, with a note of what was said."""

import string
from dataclasses import dataclass, fields, replace

import numpy as np

from dpfpl_bench.demo.drawing import COLOURS, SHAPES, TEXTURES

__all__ = [
    "FILLER_WORDS",
    "NUMBER_WORDS",
    "POSITIONS",
    "TEMPLATES",
    "Scene",
    "facts_of",
    "named_scenes",
    "sample_scene",
    "write_caption",
    "write_name",
]

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
POSITIONS = (
    "top left", "top", "top right",
    "left", "centre", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
_QUALITIES = ("plain", "pixelated", "blurry", "noisy")
_KINDS = ("digit", "letter", "shape", "shapes", "texture")


@dataclass(frozen=True)
class Scene:
    """One picture in words. An empty string stands for what the picture leaves open.

    kind: digit, letter, shape or texture; name: "7", "k", "star", "dots";
    style: handwritten, printed, uppercase, lowercase; size: small, medium, large; position: one of POSITIONS, only for
    small things; count: "1" to "4"; quality: plain, pixelated, blurry, noisy.
    """

    kind: str
    name: str
    style: str
    colour: str
    background: str
    size: str
    position: str
    count: str
    quality: str


_FIELDS = tuple(field.name for field in fields(Scene))
_TOLD = (
    *("digit", "letter", "shape", "texture"),
    *string.digits,
    *string.ascii_lowercase,
    *SHAPES,
    *TEXTURES,
    *("handwritten", "printed", "uppercase", "lowercase"),
    *COLOURS,
    *("small", "medium", "large"),
    *POSITIONS,
    *_QUALITIES,
)
_VALUES = {value: code for code, value in enumerate(dict.fromkeys(_TOLD))}


def facts_of(scene: Scene, told: frozenset[str] | None = None) -> np.ndarray:
    """The scene as codes, int64 [9]: -2 for what it leaves open; with `told`, -1 for the fields it does not name."""
    codes = [_VALUES.get(getattr(scene, name), -2) for name in _FIELDS]
    if told is not None:
        codes = [code if name in told else -1 for name, code in zip(_FIELDS, codes, strict=True)]
    return np.asarray(codes, dtype=np.int64)


def _pick(rng: np.random.Generator, options: tuple[str, ...], chances: tuple[float, ...] | None = None) -> str:
    return options[int(rng.choice(len(options), p=chances))]


def _colours(rng: np.random.Generator, writing: bool) -> tuple[str, str]:
    """Foreground and background that can be told apart; writing is mostly white on black or black on white."""
    if writing and (kind := rng.random()) < 0.6:
        return ("white", "black") if kind < 0.42 else ("black", "white")
    names = tuple(COLOURS)
    while True:
        front, back = _pick(rng, names), _pick(rng, names)
        if np.abs(np.subtract(COLOURS[front], COLOURS[back])).sum() > 240:
            return front, back


def named_scenes() -> list[Scene]:
    """One scene for each thing that has a name: digits, letters, shapes, textures; all else left open."""
    things = [
        *(("digit", name) for name in string.digits),
        *(("letter", name) for name in string.ascii_lowercase),
        *(("shape", name) for name in SHAPES),
        *(("texture", name) for name in TEXTURES),
    ]
    return [Scene(kind, name, "", "", "", "", "", "1", "plain") for kind, name in things]


def sample_scene(rng: np.random.Generator, ease: float = 0.0) -> Scene:
    """One scene at random: nearly half are digits, a quarter letters, the rest shapes and textures.

    With the chance `ease`, in 0 to 1, it is a plain large thing, white on black.
    """
    scene = _any_scene(rng)
    if rng.random() >= ease:
        return scene
    size = "" if scene.kind == "texture" else "large"
    plain = {"colour": "white", "background": "black", "size": size, "position": "", "count": "1", "quality": "plain"}
    return replace(scene, **plain)


def _any_scene(rng: np.random.Generator) -> Scene:
    kind = _pick(rng, _KINDS, (0.46, 0.24, 0.18, 0.06, 0.06))
    writing = kind in ("digit", "letter")
    colour, background = _colours(rng, writing)
    quality = _pick(rng, _QUALITIES, (0.4, 0.4, 0.1, 0.1) if writing else (0.65, 0.1, 0.1, 0.15))
    style, size, position, count = "", "", "", "1"
    if kind == "digit":
        name = str(int(rng.integers(10)))
        style = _pick(rng, ("handwritten", "printed"))
    elif kind == "letter":
        name = _pick(rng, tuple(string.ascii_lowercase))
        style = _pick(rng, ("uppercase", "lowercase"))
    elif kind == "texture":
        name = _pick(rng, TEXTURES)
    else:
        name = _pick(rng, SHAPES)
        if kind == "shapes":
            kind, count = "shape", str(int(rng.integers(2, 5)))
    if kind != "texture" and count == "1":
        chances = (0.07, 0.18, 0.75) if writing else (0.4, 0.3, 0.3)
        size = _pick(rng, ("small", "medium", "large"), chances)
        if size == "small":
            position = _pick(rng, POSITIONS)
            quality = "plain" if quality == "pixelated" else quality
    return Scene(kind, name, style, colour, background, size, position, count, quality)


TEMPLATES = (
    "a photo of {}",
    "a photo of {}.",
    "a picture of {}",
    "an image of {}",
    "a drawing of {}",
    "this is {}",
    "this is a photo of {}",
    "a close-up of {}",
    "a bad photo of {}",
    "a rendering of {}",
    "a low resolution photo of {}",
    "a cropped image showing {}",
    "here you see {}",
    "the picture shows {}",
    "this is a rather small picture which shows {}.",
    "itap of {}",
    "an example of {}",
    "{}",
    "{}.",
)


# Common English words, so that the tokenizer and the text tower have met more than the pictures' names.
_ENGLISH = """
the of and to in is it you that was for on are with as his they be at this have from or had by word but what some we
can out other were all there when up use your how said an each she which do their time if will way about many then
them write would like so these her long make thing see him look more day could go come did sound no most people my
over know water than call first who may down side been now find any new work part take get place made live where after
back little only round man year came show every good me give our under name very through just form sentence great
think say help low line differ turn cause much mean before move right boy old too same tell does set want air well
also play small end put home read hand port large spell add even land here must big high such follow act why ask men
change went light kind off need house picture try us again animal point mother world near build self earth father
airplane automobile bird cat deer dog frog horse ship truck apple fish baby bear beaver bed bee beetle bicycle bottle
bowl boy bridge bus butterfly camel can castle caterpillar cattle chair clock cloud couch crab crocodile cup dinosaur
dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn mower leopard lion lizard lobster
man maple tree motorcycle mountain mouse mushroom oak orange orchid otter palm pear pickup truck pine plain plate
poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow wolf woman worm flower face guitar piano plane camera anchor barrel bonsai cannon chandelier
cougar dragonfly ferry garfield hawksbill hedgehog helicopter ibis inline skate joshua ketch laptop llama lotus
mandolin mayfly menorah metronome minaret nautilus octopus okapi pagoda panda pigeon pizza platypus pyramid revolver
rhino rooster saxophone scissors scorpion sneaker starfish stapler stegosaurus strawberry umbrella watch wheelchair
wrench normal tumor cell tissue lesion scan healthy disease defect scratch crack good bad product leaf grain metal
glass wood fabric cotton paper plastic kitchen office street garden beach summer winter spring autumn morning night
north south east west car van boat cow sheep goat pig chicken duck goose bread cheese milk coffee tea sugar salt rice
corn bean carrot potato tomato onion garlic
"""
FILLER_WORDS = tuple(_ENGLISH.split())


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' and not words.startswith('one') else 'a'} {words}"


def _noun(scene: Scene, rng: np.random.Generator) -> tuple[str, bool]:
    """The thing's name without article, and whether it takes one."""
    if scene.kind == "digit":
        word = NUMBER_WORDS[int(scene.name)]
        spelled = word if rng.random() < 0.7 else scene.name
        frame = rng.choice(["{}", "{}", "{}", "digit {}", "number {}", "numeral {}"])
        return str(frame).format(spelled), True
    if scene.kind == "letter":
        frame = rng.choice(["letter {}", "letter {}", "{}", "character {}"])
        return str(frame).format(scene.name), True
    if scene.kind == "texture":
        return f"{scene.name} texture" if scene.name in ("noise", "gradient", "checkerboard") else scene.name, False
    if scene.count != "1":
        plural = {"cross": "crosses"}.get(scene.name, scene.name + "s")
        return f"{NUMBER_WORDS[int(scene.count)]} {plural}", False
    return scene.name, True


def write_name(scene: Scene, rng: np.random.Generator, ease: float = 0.0) -> tuple[str, frozenset[str]]:
    """A caption, lower-case, that says kind, name and count alone; and those fields' names.

    Sometimes the name follows unrelated words instead of a template: prompts may put anything before a class name.
    With the chance `ease`, in 0 to 1, it is the name alone.
    """
    noun, countable = _noun(scene, rng)
    told = frozenset({"kind", "name", "count"})
    if rng.random() < ease:
        return noun, told
    if rng.random() < 0.2:
        words = rng.choice(FILLER_WORDS, int(rng.integers(1, 17)))
        return " ".join([*words, noun]) + ("." if rng.random() < 0.5 else ""), told
    the = rng.random() < 0.3 and noun.startswith(("digit", "number", "letter"))
    return str(rng.choice(TEMPLATES)).format(f"the {noun}" if the else _article(noun) if countable else noun), told


def write_caption(scene: Scene, rng: np.random.Generator) -> tuple[str, frozenset[str]]:
    """A caption, lower-case, and the names of the Scene's fields that it states: mostly more than the thing's name."""
    way = rng.random()
    if way < 0.25:
        return write_name(scene, rng)
    template = str(rng.choice(TEMPLATES))
    if way < 0.3 and scene.style and scene.kind == "digit":
        return template.format(_article(f"{scene.style} digit")), frozenset({"kind", "style", "count"})
    noun, countable = _noun(scene, rng)
    told = {"kind", "name", "count"}
    before, after = _details(scene, rng, told)
    if scene.count != "1":
        count, plural = noun.split(" ", 1)
        phrase = " ".join([count, *before, plural])
    else:
        phrase = " ".join([*before, noun])
        phrase = _article(phrase) if countable else phrase
    return template.format(" ".join([phrase, *after])), frozenset(told)


def _details(scene: Scene, rng: np.random.Generator, told: set[str]) -> tuple[list[str], list[str]]:
    """Some of what else is true of the scene: words before the noun and after it. Adds to `told` what they state."""
    before: list[str] = []
    after: list[str] = []

    def say(field: str, words: str, where: list[str], chance: float) -> None:
        if rng.random() < chance:
            where.append(words)
            told.add(field)

    if scene.size in ("small", "large"):
        say("size", scene.size, before, 0.3)
    if scene.quality != "plain":
        say("quality", scene.quality, before, 0.25)
    if scene.style:
        style = "capital" if scene.style == "uppercase" and rng.random() < 0.5 else scene.style
        say("style", style, before, 0.4)
    say("colour", scene.colour, before, 0.6)
    if scene.position:
        where = "in the centre" if scene.position == "centre" else f"at the {scene.position}"
        say("position", where, after, 0.6)
    if rng.random() < 0.4:
        told.add("background")
        after.append(f"on {_article(scene.background)} background")
    return before, after
