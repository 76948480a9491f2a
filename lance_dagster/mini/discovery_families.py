"""Families with a gap between finding and checking: an answer is verified by a short calculation, but not found by one.

Reviews of these families write the calculation and compare ("38 + 43 = 81, want 81: yes. Right."), so that a model can
judge answers that it would not have given. Sampling and judging can then exceed what the model answers greedily.
"""

from __future__ import annotations

import random
import re

from lance_dagster.mini.families import Family, Payload, is_number

MALFORMED = "It does not fit the question."


def _numbers_in(response: str, count: int, high: int = 200) -> list[int] | None:
    """The numbers of a response such as "27 and 15" or "3 5 4 5", if it holds exactly ``count`` of them."""
    parts = re.split(r" and | ", response)
    if len(parts) != count or not all(is_number(part, 0, high) for part in parts):
        return None
    return [int(part) for part in parts]


def _against(found: object, wanted: object) -> str:
    """The comparison that ends each step of a check: "want 81: yes."."""
    return f"want {wanted}: {'yes' if str(found) == str(wanted) else 'no'}."


# missing addend: ? + a = c


def _check_addend(payload: Payload, response: str) -> str:
    found = _numbers_in(response, 1)
    if found is None:
        return MALFORMED
    total = found[0] + int(payload[0])
    return f"{found[0]} + {payload[0]} = {total}, {_against(total, payload[1])}"


def _draw_addend(rng: random.Random) -> Payload:
    a, b = rng.randint(1, 49), rng.randint(1, 49)
    return str(a), str(a + b)


def _solve_addend(payload: Payload) -> str:
    return str(int(payload[1]) - int(payload[0]))


MISSING_ADDEND = Family(
    name="missing_addend",
    phrasings=(
        "What number plus {0} makes {1}?",
        "Which number added to {0} gives {1}?",
        "{0} and what number make {1}?",
        "Find the number that turns {0} into {1} when added.",
    ),
    draw=_draw_addend,
    solve=_solve_addend,
    slip=lambda p, r: str(int(p[0]) + int(p[1])),
    stumble=lambda p, r: str(max(0, int(_solve_addend(p)) + r.choice((-20, -10, -9, -3, -2, -1, 1, 2, 3, 9, 10, 20)))),
    valid=lambda p: is_number(p[0], 1, 49) and is_number(p[1], 2, 98) and 1 <= int(p[1]) - int(p[0]) <= 49,
    check=_check_addend,
)


# three addends, one of them given: a + ? + ? = c, many right answers


def _addends(response: str) -> list[int] | None:
    return _numbers_in(response, 2, high=99) if " and " in response else None


def _draw_three_addends(rng: random.Random) -> Payload:
    a, b, c = (rng.randint(1, 30) for _ in range(3))
    return str(a), str(a + b + c)


def _find_three_addends(payload: Payload, rng: random.Random) -> str:
    rest = int(payload[1]) - int(payload[0])
    b = rng.randint(max(1, rest - 30), min(30, rest - 1))
    return f"{b} and {rest - b}"


def _check_three_addends(payload: Payload, response: str) -> str:
    found = _addends(response)
    if found is None:
        return MALFORMED
    first, total = int(payload[0]) + found[0], int(payload[0]) + sum(found)
    return f"{payload[0]} + {found[0]} = {first}, {first} + {found[1]} = {total}, {_against(total, payload[1])}"


def _accept_three_addends(payload: Payload, response: str) -> bool:
    found = _addends(response)
    return found is not None and int(payload[0]) + sum(found) == int(payload[1])


def _stumble_three_addends(payload: Payload, rng: random.Random) -> str:
    b, c = (int(part) for part in _find_three_addends(payload, rng).split(" and "))
    step = rng.choice((-20, -10, -5, -3, -2, -1, 1, 2, 3, 5, 10, 20))
    return f"{b} and {max(0, c + step)}"


THREE_ADDENDS = Family(
    name="three_addends",
    phrasings=(
        "Which two numbers added to {0} make {1}?",
        "Find two numbers that bring {0} up to {1}.",
        "Name two numbers whose sum with {0} is {1}.",
        "{0} and which two numbers give {1}?",
    ),
    draw=_draw_three_addends,
    solve=lambda p: _find_three_addends(p, random.Random("|".join(p))),
    slip=lambda p, r: f"{p[0]} and {p[1]}",
    stumble=_stumble_three_addends,
    valid=lambda p: is_number(p[0], 1, 30) and is_number(p[1], 3, 90) and 2 <= int(p[1]) - int(p[0]) <= 60,
    accepts=_accept_three_addends,
    find=_find_three_addends,
    check=_check_three_addends,
)


# four digits with a given first digit, sum and largest digit: many right answers


def _digits(response: str) -> list[int] | None:
    found = _numbers_in(response, 4, high=9)
    return found if found is not None and " and " not in response else None


def _check_digit_sum(payload: Payload, response: str) -> str:
    found = _digits(response)
    if found is None:
        return MALFORMED
    a, b, c, d = found
    first, total, largest = payload
    steps = f"{a} + {b} = {a + b}, {a + b} + {c} = {a + b + c}, {a + b + c} + {d} = {sum(found)}"
    return (
        f"First {a}, {_against(a, first)} {steps}, {_against(sum(found), total)} "
        f"Largest {max(found)}, {_against(max(found), largest)}"
    )


def _accept_digit_sum(payload: Payload, response: str) -> bool:
    found = _digits(response)
    return found is not None and (str(found[0]), str(sum(found)), str(max(found))) == payload


def _draw_digit_sum(rng: random.Random) -> Payload:
    digits = [rng.randint(0, 9) for _ in range(4)]
    return str(digits[0]), str(sum(digits)), str(max(digits))


def _solutions_digit_sum(payload: Payload) -> list[tuple[int, ...]]:
    first, total, largest = map(int, payload)
    found: list[tuple[int, ...]] = []
    for b in range(largest + 1):
        for c in range(largest + 1):
            digits = (first, b, c, total - first - b - c)
            if 0 <= digits[3] <= largest and max(digits) == largest:
                found.append(digits)
    return found


def _find_digit_sum(payload: Payload, rng: random.Random) -> str:
    return " ".join(map(str, rng.choice(_solutions_digit_sum(payload))))


def _stumble_digit_sum(payload: Payload, rng: random.Random) -> str:
    digits = [int(digit) for digit in _find_digit_sum(payload, rng).split()]
    for _ in range(rng.choice((1, 1, 2))):
        place = rng.randrange(4)
        digits[place] = min(9, max(0, digits[place] + rng.choice((-3, -2, -1, 1, 2, 3))))
    return " ".join(map(str, digits))


DIGIT_SUM = Family(
    name="digit_sum",
    phrasings=(
        "Give four digits that start with {0}, add up to {1} and have {2} as the largest.",
        "Name four digits with the sum {1}, the first {0} and the largest {2}.",
        "Which four digits begin with {0}, sum to {1} and go up to {2}?",
        "Find four digits, first {0}, largest {2}, that make {1} together.",
    ),
    draw=_draw_digit_sum,
    solve=lambda p: _find_digit_sum(p, random.Random("|".join(p))),
    slip=lambda p, r: " ".join([p[0], *(str(r.randint(0, int(p[2]))) for _ in range(3))]),
    stumble=_stumble_digit_sum,
    valid=lambda p: (
        is_number(p[0], 0, 9) and is_number(p[1], 0, 36) and is_number(p[2], 0, 9) and bool(_solutions_digit_sum(p))
    ),
    accepts=_accept_digit_sum,
    find=_find_digit_sum,
    check=_check_digit_sum,
)


# linear equation: a x + b = c


def _draw_equation(rng: random.Random) -> Payload:
    a, x, b = rng.randint(2, 6), rng.randint(1, 12), rng.randint(1, 20)
    return str(a), str(b), str(a * x + b)


def _solve_equation(payload: Payload) -> str:
    a, b, c = map(int, payload)
    return str((c - b) // a)


def _check_equation(payload: Payload, response: str) -> str:
    found = _numbers_in(response, 1, high=99)
    if found is None:
        return MALFORMED
    a, b, c = map(int, payload)
    product = a * found[0]
    return f"{a} * {found[0]} = {product}, {product} + {b} = {product + b}, {_against(product + b, c)}"


def _valid_equation(payload: Payload) -> bool:
    if not (is_number(payload[0], 2, 6) and is_number(payload[1], 1, 20) and is_number(payload[2], 3, 92)):
        return False
    a, b, c = map(int, payload)
    return (c - b) % a == 0 and 1 <= (c - b) // a <= 12


EQUATION = Family(
    name="equation",
    phrasings=(
        "Solve {0} * x + {1} = {2}.",
        "Find x so that {0} * x + {1} = {2}.",
        "What is x if {0} * x + {1} is {2}?",
        "{0} times which number plus {1} gives {2}?",
    ),
    draw=_draw_equation,
    solve=_solve_equation,
    slip=lambda p, r: str(min(99, int(p[2]) - int(p[1]))),
    stumble=lambda p, r: str(max(0, int(_solve_equation(p)) + r.choice((-4, -3, -2, -1, 1, 2, 3, 4)))),
    valid=_valid_equation,
    check=_check_equation,
)

DISCOVERY_FAMILIES: tuple[Family, ...] = (MISSING_ADDEND, THREE_ADDENDS, DIGIT_SUM, EQUATION)
