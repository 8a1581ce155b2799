"""Write children's stories from a seed: the engine that casts a story, opens it, tells a plot, and ends it.

    python -m tools.stories.generate --stories 1000 --seed 1 --out stories.txt

A story is made in three steps: `Scene` draws a cast, a place, a time of day and the things in it; a plot
(plots.py) returns paragraphs as templates; `Scene.render` fills them in and puts grammar right (capital
letters, a or an).  In a template `[one|two|]` is a choice and `{key}` a value of the scene.

The same seed always gives the same stories.  Standard library only.  The stories know nothing of the real
world beyond the tables in world.py, and no text from anywhere else is read.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from functools import cache
from typing import Any, NamedTuple, TextIO, TypeVar

from tools.stories import plots, world

Item = TypeVar("Item")
MIN_WORDS, MAX_WORDS = 80, 240
SEPARATOR = "<|end|>"

MACROS = {
    "SAD": "[{H} felt [very|so] sad.|{H} was very sad.|A tear rolled down {his} cheek.|{H} began to cry."
           "|{H} wanted to cry.|{His} eyes filled with tears.|{H} sat down and sighed.|{He} did not know "
           "what to do.]",
    "GLAD": "[{H} was so happy.|{H} jumped for joy.|{H} laughed out loud.|{H} had a big smile on {his} face."
            "|{H} clapped {his} {hands}.|{H} felt warm and happy inside.|{H} was as happy as could be.]",
    "WRONG": "[What is wrong|What is the matter|Why are you so sad|Why do you look so sad|What happened|Are "
             "you all right]",
    "THANKW": "\"[Thank you|Thank you so much|Oh, thank you|Thanks a lot], {Wv}!\" [said|cried] {H}.",
    "THANKF": "\"[Thank you|Thank you so much|Oh, thank you|Thanks a lot], {F}!\" [said|cried] {H}.",
    "WELCOMEF": "[\"[That is what friends are for|You are welcome|I am happy to help|Any time]!\" "
                "[said|answered] {F}.|]",
    "WELCOMEW": "[\"[You are welcome|I am glad I could help|You did it yourself|Any time], {H},\" said {W} "
                "with a [smile|wink|soft laugh].|]",
    "SAIDF": "[said|answered] {F}",
    "TRYAGAIN": "[But {H} did not give up.|Still, {H} did not give up.|{H} took a deep breath.|{H} thought "
                "hard.]",
    "SMILE": "[smiled|smiled kindly|nodded|gave {him} a hug|patted {his} back|laughed softly]",
    "DAYEND": "[When the sun went down|When evening came|At the end of the day|That evening|As the sky "
              "turned orange]",
}


class Person(NamedTuple):
    """Somebody in a story: a name, "f" or "m", and a kind from world.py."""

    name: str
    sex: str
    kind: world.Kind


class Story(NamedTuple):
    """A finished story with what a checker needs to know about it."""

    text: str
    plot: str
    hero: str
    sexes: frozenset[str]


HAND = {"hands": "hand", "paws": "paw", "claws": "claw", "wings": "wing", "hooves": "hoof", "feet": "foot"}
PRONOUNS = {"f": ("she", "her", "her", "herself"), "m": ("he", "him", "his", "himself")}


def _parse(template: str, i: int, depth: int) -> tuple[tuple[Any, ...], int]:
    options: list[tuple[Any, ...]] = []
    parts: list[Any] = []
    start = i
    while i < len(template):
        char = template[i]
        if char == "[" or (depth and char in "|]"):
            if i > start:
                parts.append(template[start:i])
            if char == "[":
                choice, i = _parse(template, i + 1, depth + 1)
                parts.append(choice)
            else:
                options.append(tuple(parts))
                parts = []
                i += 1
                if char == "]":
                    return tuple(options), i
            start = i
        else:
            i += 1
    if depth:
        raise ValueError(f"[ without ]: {template!r}")
    if i > start:
        parts.append(template[start:i])
    return tuple(parts), i


@cache
def parse(template: str) -> tuple[Any, ...]:
    """A template as nested tuples: a sequence of strings and choices, a choice being a tuple of sequences."""
    return _parse(template, 0, 0)[0]


_KEY = re.compile(r"\{(\w+)\}")
_AN = re.compile(r"\b([Aa]) (?=[aeiouAEIOU])(?!(?:uni|use|usu|one\b|once\b|eu))")
_START = re.compile(r"(^\"?|[.!?] \"?|\.\" \"?|[!?]\" \")([a-z])")
_SPACES = re.compile(r"\s+")


def polish(text: str) -> str:
    """Single spaces, "an" before a vowel, and a capital letter at the start of every sentence."""
    text = _SPACES.sub(" ", text).strip().replace(" .", ".")
    text = _AN.sub(r"\1n ", text)
    return _START.sub(lambda found: found[1] + found[2].upper(), text)


class Scene:
    """The state of one story: who, where, when, which things; every plot reads and extends it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.keys: dict[str, str] = {}
        self.names: set[str] = set()
        self.used: set[str] = {"hero"}
        self.friend_known = False
        self.day_known = False
        self.night = self.outdoors = self.brief = False
        self.pet: tuple[str, str, str] | None = None
        self.world = self._weighted((("child", 11), ("animal", 7), ("magic", 3)))
        self.hero = self._person(self.world)
        self.sex = {"hero": self.hero.sex}
        self.region = self.pick(self.hero.kind.regions)
        he, him, his, himself = PRONOUNS[self.hero.sex]
        self.set(H=self.hero.name, he=he, him=him, his=his, himself=himself, kind=self.hero.kind.noun,
                 home=self.pick(self.hero.kind.homes), look=self.pick(self.hero.kind.looks),
                 hands=self.hero.kind.hands, hand=HAND[self.hero.kind.hands],
                     area=self.pick(world.AREAS[self.region]))
        self.trait, self.trait2 = self.rng.sample(world.TRAITS, 2)
        hobby = self.pick(world.HOBBIES)
        self.set(trait=self.trait, trait2=self.trait2, hobby=hobby[0], hobbying=hobby[1],
                 size=self.pick(world.SIZES))
        self._friend()
        self._parent()
        self.elder()
        self._place()
        self._when()
        self.thing("toy keep wear soft")

    # drawing

    def pick(self, items: Sequence[Item]) -> Item:
        return items[int(self.rng.random() * len(items))]

    def _weighted(self, pairs: Sequence[tuple[str, int]]) -> str:
        return self.rng.choices([name for name, _ in pairs], [weight for _, weight in pairs])[0]

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def set(self, **keys: str) -> None:
        self.keys.update(keys)

    def name(self, pools: Sequence[Sequence[str]]) -> str:
        while True:
            name = self.pick(self.pick(pools))
            if name not in self.names:
                self.names.add(name)
                return name

    def _person(self, where: str, sex: str = "") -> Person:
        sex = sex or self.pick("fm")
        given = world.GIRLS if sex == "f" else world.BOYS
        if where == "child":
            return Person(self.name([given]), sex, world.GIRL if sex == "f" else world.BOY)
        if where == "animal":
            return Person(self.name([given, world.ANIMAL_NAMES]), sex, self.pick(world.ANIMALS))
        return Person(self.name([given, world.MAGIC_NAMES]), sex, self.pick(world.MAGIC))

    def _friend(self) -> None:
        where = self.world
        if where == "magic":
            where = self.pick(("magic", "animal", "child"))
        elif self.chance(0.08):
            where = "animal" if where == "child" else "child"
        sex = ("m" if self.hero.sex == "f" else "f") if self.chance(0.6) else self.hero.sex
        for _ in range(9):
            friend = self._person(where, sex)
            other = friend.kind.noun != self.hero.kind.noun
            if where == "child" or (self.region in friend.kind.regions and other):
                break
        he, him, his, _ = PRONOUNS[sex]
        noun = friend.kind.noun
        self.sex["friend"] = sex
        self.friend = friend
        same = where == "child"
        self.set(F=friend.name, fhe=he, fhim=him, fhis=his, fkind=noun, fhand=HAND[friend.kind.hands],
                 Fn=f"a [{'' if same else 'little |young '}]{noun} named {friend.name}",
                 Ff=f"{{his}} [|good |best ]friend {friend.name}" + ("" if same else "[ the " + noun + "|]"))

    def _parent(self) -> None:
        sex = self.pick("fm")
        self.sex["parent"] = sex
        he, him, his, _ = PRONOUNS[sex]
        if self.hero.kind.noun == "robot":
            name = f"Doctor {self.pick(world.SURNAMES)}"
            intro = f"the inventor {name}"
        elif self.world == "animal" and self.chance(0.5):
            name, intro = ("Mama", "{his} mama") if sex == "f" else ("Papa", "{his} papa")
        elif self.chance(0.75):
            name, intro = ("Mom", "{his} mom") if sex == "f" else ("Dad", "{his} dad")
        else:
            name, intro = ("Grandma", "{his} grandma") if sex == "f" else ("Grandpa", "{his} grandpa")
        self.parent_name = name
        self.set(P=name, Pi=intro, phe=he, phim=him, phis=his)

    def elder(self, only: str = "family neighbor wise") -> None:
        """Draw who helps: somebody of the family, a neighbor with a trade, or a wise old animal."""
        choices = only.split()
        if self.hero.kind.noun == "robot" and "family" in choices and len(choices) > 1:
            choices.remove("family")
        if self.world == "animal" and "neighbor" in choices and len(choices) > 1:
            choices.remove("neighbor")
        sort, sex = self.pick(choices), self.pick("fm")
        if sort == "family":
            options = [("Grandma", "Grandma"), ("Aunt", ""), ("sister", "")] if sex == "f" else [
                ("Grandpa", "Grandpa"), ("Uncle", ""), ("brother", "")]
            role, name = self.pick([o for o in options if o[0] != self.parent_name])
            if role in ("Aunt", "Uncle"):
                name = f"{role} {self.name([world.GIRLS if sex == 'f' else world.BOYS])}"
                intro = f"{{his}} {name}"
            elif role in ("sister", "brother"):
                name = self.name([world.GIRLS if sex == "f" else world.BOYS])
                intro = f"{{his}} big {role} {name}"
            else:
                intro = f"{{his}} {role.lower()}"
        elif sort == "neighbor":
            job, who = self.pick([j for j in world.JOBS if sex in j[1]])
            name = ("Mr. " if sex == "m" else self.pick(("Mrs. ", "Miss "))) + self.pick(world.SURNAMES)
            intro = f"[a [kind|friendly|nice] {job} named {name}|{name} the {job}]"
        else:
            animal = self.pick([w for w in world.WISE if w not in (self.hero.kind.noun,
                self.friend.kind.noun)])
            name = self.name([world.GIRLS if sex == "f" else world.BOYS, world.ANIMAL_NAMES])
            intro = f"[a wise old|an old|a kind old] {animal} named {name}"
            if self.chance(0.3):
                name, intro = f"the old {animal}", f"an old {animal}"
        he, him, his, _ = PRONOUNS[sex]
        self.sex["elder"] = sex
        self.set(W=name, Wv=name.removeprefix("the "), Wi=intro, whe=he, whim=him, whis=his)

    def _place(self) -> None:
        place = self.pick(world.PLACES[self.region])
        spots = self.rng.sample(place.spots, 3)
        self.place = place
        seats = self.rng.sample(world.SEATS, 2)
        self.set(sit1=seats[0], sit2=seats[1])
        self.set(to=place.to, at=place.at, spot1=spots[0], spot2=spots[1], spot3=spots[2],
                 high=self.pick(place.high), view=self.pick(place.views))

    def _when(self) -> None:
        self.weather = self._weighted((("sunny", 5), ("warm", 3), ("bright", 2), ("windy", 2), ("cloudy", 1),
                                       ("cool", 1), ("quiet", 2)))
        self.time = self._weighted((("morning", 3), ("afternoon", 2), ("day", 4)))
        time = self.time
        self.set(weather=self.weather, time=time,
                 day=f"[one day|one [{self.weather} |]{time}|one {self.weather} {time}]")

    def windy(self) -> None:
        """Make it a windy day, for plots that need the wind (call before the opening)."""
        self.weather = "windy"
        self.set(weather="windy", day=f"one windy {self.time}")

    def thing(self, tags: str) -> None:
        """Draw the thing the story is about, among those with one of these tags."""
        wanted = set(tags.split())
        self.set(**self.draw_thing(wanted))

    def draw_thing(self, wanted: AbstractSet[str], but: str = "", prefix: str = "T") -> dict[str, str]:
        thing = self.pick([t for t in world.THINGS if wanted & set(t.tags.split()) and t.noun != but])
        color, material, size = self.pick(world.COLORS), self.pick(thing.mats), self.pick(world.SIZED)
        adjective = self.pick((color, color, material))
        self.last_tags = thing.tags
        if adjective == color and color in ("golden", "silver") and material in ("brass", "wooden", "paper"):
            color = adjective = "red"
        full = self.pick((f"{size} {adjective}", adjective,
                          f"{material} {color}" if material not in ("brass", "wooden", "paper", "painted",
                              "glass",
                                                                    "straw", "tin", "shell", "rubber")
                          else f"{color} {material}"))
        return {prefix: thing.noun,
            prefix + "s": f"{adjective} {thing.noun}" if adjective in full else thing.noun,
                prefix + "f": f"{full} {thing.noun}"}

    # telling

    def render(self, template: str) -> str:
        """Make every choice and fill in every key, again until nothing is left to fill."""
        for _ in range(9):
            text = self._expand(parse(template))
            template = _KEY.sub(self._fill, text)
            if "{" not in template and "[" not in template:
                return polish(template)
        raise ValueError(f"template does not settle: {template!r}")

    def _expand(self, parts: tuple[Any, ...]) -> str:
        out = []
        for part in parts:
            if isinstance(part, str):
                out.append(part)
            elif not (self.brief and () in part):
                out.append(self._expand(self.pick(part)))
        return "".join(out)

    def _fill(self, found: re.Match[str]) -> str:
        key = found[1]
        lower = key[0].lower() + key[1:]
        if key not in MACROS and key not in self.keys and (lower in self.keys):
            value = self._value(lower)
            return value[0].upper() + value[1:] if value[0] != "[" else value
        return self._value(key)

    def _value(self, key: str) -> str:
        if key in ("F", "Ff", "Fn", "fhe", "fhim", "fhis"):
            self.used.add("friend")
        elif key in ("W", "Wv", "Wi", "whe", "whim", "whis"):
            self.used.add("elder")
        elif key in ("P", "Pi", "phe", "phim", "phis"):
            self.used.add("parent")
        if key == "Ff" and self.friend_known:
            key = "F"
        if key in ("F", "Ff", "Fn"):
            self.friend_known = True
        if key == "day":
            if self.day_known:
                return self.pick(("that day", "soon", "a little later", "after a while"))
            self.day_known = True
        if key in MACROS:
            return MACROS[key]
        if key == "N":
            return self.keys[self.pick(("H", "he"))]
        return self.keys[key]

    def opening(self) -> str:
        """The first sentences: who the hero is and where the hero lives."""
        child, noun = self.world == "child", self.hero.kind.noun
        first = f"[big|kind|{self.trait}]" if noun == "giant" else f"[little|small|young|kind|{self.trait}]"
        who = f"a {first} {noun} [named|named|called] {{H}}"
        plain = f"a {first} {noun}"
        opener = self._weighted((("once", 40), ("lived", 8), ("was", 9), ("area", 9), ("name", 5), ("there",
            8),
                                 ("loved", 6), ("friends", 7), ("pet", 7 if child else 0), ("morning", 7),
                                 ("every", 5), ("long", 4), ("the", 6 if not child else 2), ("a", 6),
                                     ("story", 2),
                                 ("oneday", 8), ("speech", 3)))
        live = ("[{He} lived in {home} {area}.|{He} lived {area}, in {home}.|{H} lived in {home} "
                "{area}.|{His} home was "
                "{home} {area}.|{He} lived {area}.]")
        like = ("[{H} loved {hobbying}.|{He} loved to {hobby}.|{He} liked {hobbying} more than anything.|{H} "
                "liked to "
                "{hobby}.|{He} was also very {trait2}.|{He} had {look}.|{He} had {look}, and "
                "{he} loved to {hobby}.|Everyone said that {he} was {trait2}.|]")
        both = "[{H} loved {hobbying}.|{H} liked to {hobby}.|{H} was very {trait2}.|]"
        looks = "[ who had {look}| with {look}|||]"
        pet = ""
        if child and (opener == "pet" or self.chance(0.12)):
            kind, does = self.pick(world.PETS)
            name = self.name([world.PET_NAMES])
            self.pet = (kind, name, does)
            pet = (f" [{{He}} had a {kind} named {name} who went everywhere with {{him}}.|{{His}} {kind}, "
                   f"{name}, was always [by {{his}} side|with {{him}}].|{{He}} had a [little|brown|sweet] "
                   f"{kind} named {name}.]")
        if opener == "once":
            text = self.pick((
                f"Once upon a time, there was {who}{looks}. {live} {like}",
                f"Once upon a time, there was {who}. {like} {live}",
                f"Once upon a time, there was {plain}{looks}. {{His}} name was {{H}}. {live} {like}",
                f"Once upon a time, there lived {who} {{area}}. {like}",
                f"Once upon a time, {{area}}, there lived {who}. {like}",
                f"Once upon a time, {{area}}, there was {plain}. {{His}} name was {{H}}. {like}",
                f"Once upon a time, {who} lived in {{home}} {{area}}. {like}",
                f"Once upon a time, there was {who} who [loved to {{hobby}}|loved {{hobbying}}|lived "
                f"{{area}}]. {like}",
                f"Once upon a time there was {who}. {live} {like}",
                "Once upon a time, {H} and {Ff} lived {area}. " + both,
                f"Once upon a time, in {{home}} {{area}}, there lived {who}. {like}",
            ))
        elif opener == "lived":
            text = f"{{H}} lived in {{home}} {{area}}. {{He}} was {plain}{looks}. {like}"
        elif opener == "was":
            text = f"{{H}} was {plain}{looks}. {live} {like}"
        elif opener == "area":
            text = f"{{Area}}, there [lived|was] {who}{looks}. {like}"
        elif opener == "name":
            text = f"[There was once|Once there was] {plain}{looks}. {{His}} name was {{H}}. {live} {like}"
        elif opener == "there":
            text = f"[There was once|Once there was|There once was] {who}{looks}. {live} {like}"
        elif opener == "loved":
            text = ("{H} [loved|really loved|always loved] {hobbying}. {He} was "
                    f"{plain} [who lived|and lived] {{area}}.")
        elif opener == "friends":
            self.friend_known = True
            also = "" if child else f" [{{H}} was a {noun} and {{F}} was a {self.friend.kind.noun}.|]"
            text = ("{H} and {F} were [best|good] friends. [They lived {area}.|They lived next door to each "
                    "other.|They "
                    f"did everything together.|They both loved to {{hobby}}.]{also} {both}")
        elif opener == "pet":
            assert self.pet
            kind, name, _ = self.pet
            pet = ""
            text = self.pick((
                f"{{H}} and {{his}} {kind}, {name}, lived in {{home}} {{area}}. {like}",
                f"{{H}} and {{his}} {kind} lived {{area}}. The {kind}'s name was {name}. {like}",
                f"{{H}} had a {kind} named {name}. {{H}} and {name} [did everything together|went everywhere "
                f"together]. "
                f"{live}",
                f"{{H}} and {{his}} {kind} {name} were best friends. {live} {like}",
                f"{{Day}}, {{H}} and {{his}} {kind} {name} were [outside|at home together|out for a walk]. "
                f"{{H}} was "
                f"{plain}. {like}",
            ))
        elif opener == "morning":
            text = (f"It was a {self.weather} {self.time}. {who} [woke up|opened {{his}} eyes|jumped out "
                    f"of bed|looked outside] and [smiled|felt happy|wanted to have fun]. {like}")
            if self.time != "morning":
                text = (f"It was a {self.weather} {self.time} {{area}}. {who} was [outside|at home"
                        f"|sitting by the door|looking for something to do]. {like}")
            self.day_known = True
        elif opener == "every":
            text = (f"Every [day|morning|evening], {{H}}{'' if child else ' the ' + noun} [liked to "
                    f"{{hobby}}|went out to {{hobby}}|had time to "
                    f"{{hobby}}]. {live}")
        elif opener == "long":
            text = ("[Long ago|A long time ago|Not so long ago|Many years ago], there [was|lived] "
                    f"{who} {{area}}. {like}")
        elif opener == "the":
            text = f"The [little|young|small] {noun} {{H}} lived {{area}}. {like}"
            if not child:
                text = self.pick((text, f"The {noun} lived in {{home}} {{area}}. {{His}} name was {{H}}. "
                                        f"{like}",
                                  f"The [little|young|{self.trait}] {noun} was called {{H}}. {live} {like}",
                                  f"The {noun} was {self.trait} and {self.trait2}. {{His}} name was {{H}}. "
                                  f"{live}"))
        elif opener == "a":
            text = f"{who} lived in {{home}} {{area}}. {like}"
        elif opener == "story":
            text = f"This is the story of {{H}}, {plain} who lived {{area}}. {like}"
        elif opener == "speech":
            text = (f"\"[What a {self.weather} {self.time}|Hello, world|Today will be a good day]!\" "
                    f"[said|cried] {{H}}. "
                    f"{{H}} was {plain} who lived {{area}}. {like}")
            self.day_known = True
        else:
            text = f"{{Day}}, {who} [was at home|was playing outside|was out for a walk] {{area}}. {like}"
        return text + pet

    def closing(self) -> str:
        """A last sentence or two, naming the hero."""
        if self.night:
            return self.pick((
                "And {H} dreamed [happy|sweet] dreams.", "{H} slept until the sun came up.",
                "In the morning, {H} woke up with a [big |happy |]smile.", "{H} slept well and dreamed of "
                                                                           "[stars|flowers|the sea].",
                "And all night long, {H} slept without a sound.", "And then {H} slept deep and well."))
        options = [
            "That night, {H} [fell asleep|went to bed] with a [big |happy |]smile.",
            "{H} had never been so happy.", "It was the best day {H} had ever had.",
            "And {H} was happy for a long, long time.", "{H} smiled and smiled.",
            "{H} never forgot that day.", "And that is how {H} had the best day ever.",
            "That night, {H} dreamed [happy|sweet] dreams.", "{H} could not wait for the next day.",
        ]
        if self.outdoors:
            options += ["{DAYEND}, {H} went home, tired but [very |]happy.", "{H} smiled all the way home."]
        if "friend" in self.used:
            options += ["{H} gave {F} a big hug, and they both smiled.", "{H} and {F} lived happily ever "
                                                                         "after.",
                        "And {H} and {F} stayed friends for the rest of their lives."]
            if self.outdoors:
                options += ["{H} and {F} laughed all the way home.", "{DAYEND}, {H} and {F} walked home "
                                                                     "together."]
        text = self.pick(options)
        return text + (" The end." if self.chance(0.12) else "")

    def pet_line(self, last: bool) -> str:
        assert self.pet
        kind, name, does = self.pet
        if last:
            return self.pick((f"{name} the {kind} {does}, too.", f"Even {name} the {kind} was happy.",
                f"{name} {does}."))
        return self.pick((f"{name} the {kind} stayed close to {{H}}.", f"{name} watched with big eyes.",
                          f"{name} looked up at {{H}}."))


def make_story(rng: random.Random) -> Story:
    """One story within the length bounds; draws again from the same generator until one fits."""
    while True:
        scene = Scene(rng)
        plot = rng.choices(plots.PLOTS, plots.WEIGHTS)[0]
        if not plots.fits(plot, scene):
            continue
        name = plot.__name__
        scene.night, scene.outdoors = name in plots.NIGHT, name in plots.OUTDOORS
        scene.brief = rng.random() < 0.3
        paragraphs = plot(scene)
        for attempt in range(9):
            if attempt > 4:
                scene.brief = True
            text = tell(scene, paragraphs, name in plots.STRANGERS)
            if MIN_WORDS <= len(text.split()) <= MAX_WORDS:
                sexes = {scene.sex[role] for role in scene.used if role in scene.sex}
                return Story(text, name, scene.hero.name, frozenset(sexes))


def tell(scene: Scene, paragraphs: Sequence[str], strangers: bool) -> str:
    """Render the opening, the paragraphs of a plot and a closing, and join them."""
    rng = scene.rng
    looks = scene.render("{look}").lower()
    while True:
        scene.friend_known = scene.day_known = False
        scene.pet, scene.used = None, {"hero"}
        opening = scene.render(scene.opening())
        said = opening.count(scene.keys["hobby"]) + opening.count(scene.keys["hobbying"])
        if opening.lower().count(looks) < 2 and said < 2 and not (strangers and scene.friend_known):
            break
    body = [scene.render(part) for part in paragraphs]
    if scene.pet:
        spot = rng.randrange(len(body))
        body[spot] += " " + scene.render(scene.pet_line(spot == len(body) - 1))
    body[-1] += " " + scene.render(scene.closing())
    if rng.random() < 0.35:
        opening, body = opening + " " + body[0], body[1:]
    return (" " if rng.random() < 0.2 else "\n\n").join([opening, *body])


def stories(count: int, seed: int) -> Iterator[Story]:
    """Yield `count` stories; story number i of a seed is always the same, whatever the count."""
    rng = random.Random(f"stories {seed}")
    for _ in range(count):
        yield make_story(rng)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write children's stories from a seed.")
    parser.add_argument("--stories", type=int, default=10, help="how many stories (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same stories")
    parser.add_argument("--out", help="file to write (default: standard output)")
    args = parser.parse_args(argv)

    def write(stream: TextIO) -> None:
        for story in stories(args.stories, args.seed):
            stream.write(f"{story.text}\n{SEPARATOR}\n")

    if args.out:
        with open(args.out, "w", encoding="ascii") as stream:
            write(stream)
    else:
        write(sys.stdout)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
