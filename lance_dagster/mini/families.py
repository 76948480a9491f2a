"""The task families of the mini world: what can be asked, what is right, what a plausible mistake looks like.

A family turns a payload (a tuple of strings) into an instruction by one of several phrasings, knows the
right answers, and can read an instruction back into its payload. Everything is a pure function of its
arguments; randomness comes from the ``random.Random`` that the caller passes in.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from lance_dagster.errors import SettingsError

LETTERS = string.ascii_uppercase
WORD_LETTERS = "ABCDEFGHKMPRST"
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

Payload = tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """One kind of task.

    ``draw`` makes a payload, ``solve`` gives its right answer, ``slip`` the mistake that someone who
    misunderstood the task makes (the same misunderstanding each time), ``stumble`` a random one.
    ``enumerable`` marks families with so few payloads that splits separate single phrasings, not payloads.

    Families whose answers are easier to check than to find have more: ``accepts`` tells whether an answer is right
    (there may be many), ``find`` gives a random right one, ``check`` the calculation by which a review verifies one.
    """

    name: str
    phrasings: tuple[str, ...]
    draw: Callable[[random.Random], Payload]
    solve: Callable[[Payload], str]
    slip: Callable[[Payload, random.Random], str]
    stumble: Callable[[Payload, random.Random], str]
    valid: Callable[[Payload], bool]
    enumerable: bool = False
    accepts: Callable[[Payload, str], bool] | None = None
    find: Callable[[Payload, random.Random], str] | None = None
    check: Callable[[Payload, str], str] | None = None

    def render(self, payload: Payload, phrasing: int) -> str:
        """The instruction text of ``payload`` in one phrasing."""
        return self.phrasings[phrasing].format(*payload)

    def is_right(self, payload: Payload, response: str) -> bool:
        """Whether ``response`` is a right answer."""
        return response == self.solve(payload) if self.accepts is None else self.accepts(payload, response)

    def right(self, payload: Payload, rng: random.Random) -> str:
        """A right answer; where there are many, a random one."""
        return self.solve(payload) if self.find is None else self.find(payload, rng)

    def wrong(self, payload: Payload, rng: random.Random, systematic: bool | None = None) -> str:
        """A wrong answer: systematic, random, or (default) mostly random. SettingsError if the family knows none."""
        for _ in range(40):
            by_rule = rng.random() < 0.3 if systematic is None else systematic
            text = (self.slip if by_rule else self.stumble)(payload, rng)
            if text and not self.is_right(payload, text):
                return text
            systematic = None
        cut = self.solve(payload)[:-1] or "0"  # the last letter of CCC: every mistake there is, is right
        if self.is_right(payload, cut):
            raise SettingsError(
                f"family {self.name!r} knows no wrong answer to {self.render(payload, 0)!r}: its slip and its stumble "
                "are right 40 times in a row; make them differ from solve"
            )
        return cut

    @cached_property
    def _readers(self) -> tuple[re.Pattern[str], ...]:
        return tuple(_reader(phrasing) for phrasing in self.phrasings)

    def read(self, instruction: str) -> tuple[Payload, int] | None:
        """Payload and phrasing of a well-formed instruction of this family, else None."""
        for index, pattern in enumerate(self._readers):
            match = pattern.fullmatch(instruction)
            if match:
                payload = tuple(match.group(f"f{i}") for i in range(len(match.groupdict())))
                if self.valid(payload):
                    return payload, index
        return None


def _reader(phrasing: str) -> re.Pattern[str]:
    """A pattern that reads the fields of a phrasing back."""
    parts = re.split(r"\{(\d)\}", phrasing)
    seen: set[str] = set()
    out = ""
    for position, part in enumerate(parts):
        if position % 2 == 0:
            out += re.escape(part)
        elif part in seen:
            out += f"(?P=f{part})"
        else:
            seen.add(part)
            out += f"(?P<f{part}>[A-Za-z0-9 ]+?)"
    return re.compile(out)


# payload shapes


def _word(rng: random.Random, low: int = 3, high: int = 4, letters: str = WORD_LETTERS) -> str:
    return "".join(rng.choice(letters) for _ in range(rng.randint(low, high)))


def is_number(text: str, low: int, high: int) -> bool:
    return text.isdecimal() and text.isascii() and (text == "0" or text[0] != "0") and low <= int(text) <= high


def _is_word(text: str) -> bool:
    return 1 <= len(text) <= 8 and text.isascii() and text.isalpha() and text.isupper()


def _numbers(low: int, high: int, count: int) -> Callable[[Payload], bool]:
    return lambda p: len(p) == count and all(is_number(x, low, high) for x in p)


def _near(answer: str, rng: random.Random) -> str:
    return str(max(0, int(answer) + rng.choice((-10, -2, -1, 1, 2, 10))))


def _swap(text: str, rng: random.Random) -> str:
    if len(set(text)) < 2:
        return text + text[:1]
    while True:
        i, j = rng.sample(range(len(text)), 2)
        letters = list(text)
        letters[i], letters[j] = letters[j], letters[i]
        if "".join(letters) != text:
            return "".join(letters)


def _mangle(answer: str, rng: random.Random) -> str:
    return rng.choice((_swap(answer, rng), answer[:-1], answer + answer[-1]))


# families


def _draw_subtraction(rng: random.Random) -> Payload:
    a, b = rng.randint(1, 49), rng.randint(1, 49)
    return str(max(a, b)), str(min(a, b))


def _shift_weekday(payload: Payload, extra: int = 0) -> str:
    day, direction, steps = payload
    sign = 1 if direction == "after" else -1
    return WEEKDAYS[(WEEKDAYS.index(day) + sign * int(steps) + extra) % 7]


def _draw_letter(rng: random.Random) -> Payload:
    steps = rng.randint(1, 4)
    return LETTERS[rng.randint(0, 25 - steps)], str(steps)


def _draw_count(rng: random.Random) -> Payload:
    letters = "".join(rng.sample(WORD_LETTERS, 3))
    return rng.choice(letters), _word(rng, letters=letters)


def _shift_letter(payload: Payload, extra: int = 0) -> str:
    return LETTERS[(LETTERS.index(payload[0]) + int(payload[1]) + extra) % 26]


_FACT_VALUES = {
    "flag color": ("red", "blue", "green", "yellow", "white", "black", "brown", "pink"),
    "animal": ("lion", "bear", "wolf", "eagle", "horse", "snake", "tiger", "goat", "duck", "frog"),
    "main food": ("rice", "bread", "fish", "corn", "beans", "soup", "cheese", "nuts"),
}


def _invent_facts(seed: int = 7, places: int = 40) -> dict[tuple[str, str], str]:
    """A closed set of facts about invented places: (attribute, place) -> value."""
    rng = random.Random(seed)
    names: list[str] = []
    while len(names) < places:
        name = "".join(rng.choice("BDFGKLMNPRSTVZ" if i % 2 == 0 else "AEIOU") for i in range(4))
        if name not in names:
            names.append(name)
    return {(attribute, name): rng.choice(values) for name in names for attribute, values in _FACT_VALUES.items()}


FACTS = _invent_facts()
_FACT_KEYS = tuple(FACTS)


ADDITION = Family(
    name="addition",
    phrasings=("What is {0} + {1}?", "Add {0} and {1}.", "Find the sum of {0} and {1}.", "Compute {0} plus {1}."),
    draw=lambda r: (str(r.randint(1, 49)), str(r.randint(1, 49))),
    solve=lambda p: str(int(p[0]) + int(p[1])),
    slip=lambda p, r: str(int(p[0]) + int(p[1]) + 10),
    stumble=lambda p, r: _near(str(int(p[0]) + int(p[1])), r),
    valid=_numbers(1, 49, 2),
)
SUBTRACTION = Family(
    name="subtraction",
    phrasings=(
        "What is {0} - {1}?",
        "Subtract {1} from {0}.",
        "Find the difference of {0} and {1}.",
        "Compute {0} minus {1}.",
    ),
    draw=_draw_subtraction,
    solve=lambda p: str(int(p[0]) - int(p[1])),
    slip=lambda p, r: str(int(p[0]) - int(p[1]) + 1),
    stumble=lambda p, r: _near(str(int(p[0]) - int(p[1])), r),
    valid=lambda p: _numbers(1, 49, 2)(p) and int(p[0]) >= int(p[1]),
)
LARGER = Family(
    name="larger",
    phrasings=(
        "Which is larger, {0} or {1}?",
        "Pick the bigger number: {0} or {1}.",
        "Between {0} and {1}, which is greater?",
        "Give the maximum of {0} and {1}.",
    ),
    draw=lambda r: (str(r.randint(1, 99)), str(r.randint(1, 99))),
    solve=lambda p: str(max(int(p[0]), int(p[1]))),
    slip=lambda p, r: str(min(int(p[0]), int(p[1]))),
    stumble=lambda p, r: r.choice((str(min(int(p[0]), int(p[1]))), _swap(str(max(int(p[0]), int(p[1]))), r))),
    valid=_numbers(1, 99, 2),
)
SORTING = Family(
    name="sorting",
    phrasings=(
        "Sort the digits {0}.",
        "Put the digits of {0} in order.",
        "Arrange {0} from low to high.",
        "Order the digits {0}, smallest first.",
    ),
    draw=lambda r: ("".join(str(r.randint(0, 9)) for _ in range(r.randint(3, 4))),),
    solve=lambda p: "".join(sorted(p[0])),
    slip=lambda p, r: "".join(sorted(p[0], reverse=True)),
    stumble=lambda p, r: _mangle("".join(sorted(p[0])), r),
    valid=lambda p: p[0].isdecimal() and p[0].isascii() and len(p[0]) <= 8,
)
REVERSING = Family(
    name="reversing",
    phrasings=(
        "Reverse the word {0}.",
        "Write {0} backwards.",
        "Spell {0} from end to start.",
        "Flip the letters of {0}.",
    ),
    draw=lambda r: (_word(r),),
    solve=lambda p: p[0][::-1],
    slip=lambda p, r: p[0],
    stumble=lambda p, r: _mangle(p[0][::-1], r),
    valid=lambda p: _is_word(p[0]),
)
SPELLING = Family(
    name="spelling",
    phrasings=(
        "Spell {0} with dashes.",
        "Put dashes between the letters of {0}.",
        "Write {0} letter by letter with dashes.",
        "Join the letters of {0} by dashes.",
    ),
    draw=lambda r: (_word(r),),
    solve=lambda p: "-".join(p[0]),
    slip=lambda p, r: p[0],
    stumble=lambda p, r: r.choice(("-".join(p[0]).replace("-", "", 1), "-".join(_swap(p[0], r)), "-".join(p[0])[:-2])),
    valid=lambda p: _is_word(p[0]),
)
COUNTING = Family(
    name="counting",
    phrasings=(
        "How many times is {0} in {1}?",
        "Count the letter {0} in {1}.",
        "How often does {0} appear in {1}?",
        "Give the number of {0} in the word {1}.",
    ),
    draw=_draw_count,
    solve=lambda p: str(p[1].count(p[0])),
    slip=lambda p, r: str(p[1].count(p[0]) + 1),
    stumble=lambda p, r: str(max(0, p[1].count(p[0]) + r.choice((-2, -1, 1, 2)))),
    valid=lambda p: len(p[0]) == 1 and _is_word(p[0]) and _is_word(p[1]),
)
LAST_LETTER = Family(
    name="last_letter",
    phrasings=(
        "What is the last letter of {0}?",
        "Which letter ends {0}?",
        "Give the final letter of {0}.",
        "Name the letter at the end of {0}.",
    ),
    draw=lambda r: (_word(r),),
    solve=lambda p: p[0][-1],
    slip=lambda p, r: p[0][0],
    stumble=lambda p, r: r.choice(p[0]),
    valid=lambda p: _is_word(p[0]),
)
WEEKDAY = Family(
    name="weekday",
    phrasings=(
        "What day is {2} days {1} {0}?",
        "Which weekday comes {2} days {1} {0}?",
        "Name the day {2} days {1} {0}.",
        "{2} days {1} {0} is which day?",
    ),
    draw=lambda r: (r.choice(WEEKDAYS), r.choice(("after", "before")), str(r.randint(1, 6))),
    solve=_shift_weekday,
    slip=lambda p, r: _shift_weekday(p, extra=1),
    stumble=lambda p, r: r.choice(WEEKDAYS),
    valid=lambda p: p[0] in WEEKDAYS and p[1] in ("after", "before") and is_number(p[2], 1, 6),
    enumerable=True,
)
PARITY = Family(
    name="parity",
    phrasings=(
        "Is {0} even or odd?",
        "Tell if {0} is odd or even.",
        "Say whether {0} is even or odd.",
        "What is the parity of {0}?",
    ),
    draw=lambda r: (str(r.randint(1, 199)),),
    solve=lambda p: "odd" if int(p[0]) % 2 else "even",
    slip=lambda p, r: "even" if int(p[0]) % 2 else "odd",
    stumble=lambda p, r: "even" if int(p[0]) % 2 else "odd",
    valid=_numbers(1, 199, 1),
    enumerable=True,
)
NEXT_NUMBER = Family(
    name="next_number",
    phrasings=(
        "What number comes after {0}?",
        "Which number follows {0}?",
        "Add one to {0}.",
        "Give the number right after {0}.",
    ),
    draw=lambda r: (str(r.randint(1, 198)),),
    solve=lambda p: str(int(p[0]) + 1),
    slip=lambda p, r: str(int(p[0]) - 1),
    stumble=lambda p, r: _near(str(int(p[0]) + 1), r),
    valid=_numbers(1, 198, 1),
    enumerable=True,
)
NEXT_LETTER = Family(
    name="next_letter",
    phrasings=(
        "Which letter is {1} after {0}?",
        "Name the letter {1} places after {0}.",
        "Go {1} letters forward from {0}.",
        "Move {1} letters past {0}. What is it?",
    ),
    draw=_draw_letter,
    solve=_shift_letter,
    slip=lambda p, r: _shift_letter(p, extra=-1),
    stumble=lambda p, r: _shift_letter(p, extra=r.choice((-2, -1, 1, 2))),
    valid=lambda p: len(p[0]) == 1 and _is_word(p[0]) and is_number(p[1], 1, 25 - LETTERS.index(p[0])),
    enumerable=True,
)
FACT = Family(
    name="fact",
    phrasings=(
        "What is the {0} of {1}?",
        "Name the {0} of {1}.",
        "Tell me the {0} of {1}.",
        "In {1}, what is the {0}?",
    ),
    draw=lambda r: r.choice(_FACT_KEYS),
    solve=lambda p: FACTS[(p[0], p[1])],
    slip=lambda p, r: r.choice(_FACT_VALUES[p[0]]),
    stumble=lambda p, r: r.choice(_FACT_VALUES[p[0]]),
    valid=lambda p: p in FACTS,
    enumerable=True,
)

REPAIR_FAMILIES: tuple[Family, ...] = (
    ADDITION,
    SUBTRACTION,
    LARGER,
    SORTING,
    REVERSING,
    SPELLING,
    COUNTING,
    LAST_LETTER,
    WEEKDAY,
    PARITY,
    NEXT_NUMBER,
    NEXT_LETTER,
    FACT,
)
