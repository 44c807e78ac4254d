"""Answers in the style of MATH with known values: each a reference, a completion, and whether the completion is right."""

import random
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple


class Case(NamedTuple):
    """A completion and whether its answer is the reference's."""

    kind: str
    reference: str
    completion: str
    right: bool


WRAPPERS = (
    r"Adding both sides, we find \boxed{{{}}}.",
    r"Adding both sides, we find $\boxed{{{}}}$.",
    "Step 1: 12 apples. Step 2: 7 more.\nThe answer is: ${}$",
    "The first guess was 4, and it was wrong.\n#### {}",
    "<think>Perhaps the answer is 4, or 5? \\boxed{{4}}</think>\nThe answer is {}",
    "<think>Hm, 4.</think><answer>{}</answer>",
    "두 값을 더해요.\n정답: {}",
)


def cases(count: int, seed: int) -> list[Case]:
    """As many cases as asked for, every kind in its turn."""
    rng = random.Random(seed)
    made: list[Case] = []
    while len(made) < count:
        for kind, make in KINDS.items():
            reference, right, wrong = make(rng)
            for forms, is_right in ((right, True), (wrong, False)):
                form = rng.choice(forms)
                made.append(Case(kind, reference, rng.choice(WRAPPERS).format(form), is_right))
    return made[:count]


Forms = tuple[str, list[str], list[str]]


def integers(rng: random.Random) -> Forms:
    n = rng.choice([-1, 1]) * rng.randint(6, 99999)
    minus = rng.choice("−–-‑－")
    text = f"{minus if n < 0 else ''}{abs(n)}"
    right = [str(n), f"{n:,}", text, f"{n}.0", f"{n} = {n}", f"x = {n}"]
    wrong = [str(-n), f"{n + 1:,}", f"{n}0", f"{n} or {n + 1}", f"{n - 1}, {n}", f"{n}x", f"{n}.5"]
    return rng.choice([str(n), f"{n:,}"]), right, wrong


def fractions(rng: random.Random) -> Forms:
    below = rng.choice([2, 4, 5, 8, 20])
    above = below * rng.randint(1, 9) + rng.choice([k for k in range(1, below) if Fraction(k, below).denominator == below])
    whole, rest = divmod(above, below)
    right = [
        f"{above}/{below}",
        rf"\frac{{{above}}}{{{below}}}",
        rf"\dfrac{{{2 * above}}}{{{2 * below}}}",
        str(above / below),
        f"{whole} {rest}/{below}",
    ]
    right += [rf"{whole}\frac{{{rest}}}{{{below}}}"]
    wrong = [
        f"{below}/{above}",
        rf"-\frac{{{above}}}{{{below}}}",
        f"{whole}{rest}/{below}",
        str(whole),
        rf"\frac{{{above}{below}}}{{{below}}}",
    ]
    reference = rng.choice(
        [rf"\frac{{{above}}}{{{below}}}", f"{above}/{below}", f"{whole} {rest}/{below}", rf"{whole}\frac{{{rest}}}{{{below}}}"]
    )
    return reference, right, wrong


def lists(rng: random.Random) -> Forms:
    members = [str(n) for n in rng.sample(range(-40, 1200), rng.randint(2, 4))]
    other = [*members[1:], str(int(members[0]) + 1)]
    shuffled = rng.sample(members, len(members))
    right = [
        ", ".join(members),
        ", ".join(shuffled),
        r"\{" + ", ".join(shuffled) + r"\}",
        " and ".join(shuffled),
        "; ".join(members),
    ]
    right += [", ".join(f"x = {member}" for member in shuffled), r" \text{ or } ".join(members)]
    wrong = [
        ", ".join(other),
        ", ".join(members[1:]),
        "".join(members).replace("-", ""),
        " and ".join(other),
        ", ".join([*members, "1999"]),
    ]
    return ", ".join(members), right, wrong


def intervals(rng: random.Random) -> Forms:
    low = rng.randint(-20, 20)
    high = low + rng.randint(2, 30)
    opening, closing = rng.choice("[("), rng.choice("])")
    left, right_sign = (r"\le" if opening == "[" else "<"), (r"\le" if closing == "]" else "<")
    text = f"{opening}{low}, {high}{closing}"
    right = [
        text,
        text.replace(" ", ""),
        rf"\left{text[:-1]}\right{closing}",
        rf"x \in {text}",
        f"{low} {left} x {right_sign} {high}",
    ]
    other = {"[": "(", "(": "[", "]": ")", ")": "]"}
    wrong = [
        f"{other[opening]}{low}, {high}{closing}",
        f"{opening}{low}, {high + 1}{closing}",
        f"{opening}{low}, {high}{other[closing]}",
        str(high),
    ]
    return text, right, wrong


def units(rng: random.Random) -> Forms:
    n = rng.randint(6, 400)
    unit, long, wrong_unit = rng.choice(
        [("cm", "centimeters", "m"), ("kg", "kilograms", "g"), ("min", "minutes", "hours"), ("m^2", "square meters", "m")]
    )
    right = [str(n), f"{n} {unit}", rf"{n}\text{{ {unit}}}", f"{n} {long}", rf"{n}\,\mathrm{{{unit}}}"]
    wrong = [f"{n} {wrong_unit}", f"{n + 1} {unit}", rf"{n}\text{{ {wrong_unit}}}", str(n * 100), f"-{n} {unit}"]
    return rng.choice([f"{n} {unit}", rf"{n}\text{{ {unit}}}", f"{n} {long}"]), right, wrong


def matrices(rng: random.Random) -> Forms:
    a, b, c, d = rng.sample(range(-9, 10), 4)

    def matrix(a: int, b: int, c: int, d: int, name: str = "pmatrix") -> str:
        return rf"\begin{{{name}}}{a} & {b} \\ {c} & {d}\end{{{name}}}"

    right = [matrix(a, b, c, d), matrix(a, b, c, d, "bmatrix"), matrix(a, b, c, d).replace(" ", "")]
    return matrix(a, b, c, d), right, [matrix(a, c, b, d), matrix(a, b, c, d + 1), matrix(d, b, c, a)]


def words(rng: random.Random) -> Forms:
    word, other = rng.sample(["east", "west", "Tuesday", "even", "odd", "Evelyn", "(A)", "(C)", "true", "parallel"], 2)
    return (
        rf"\text{{{word}}}",
        [rf"\text{{{word}}}", word, word.lower(), word.strip("()")],
        [rf"\text{{{other}}}", other, f"not {word}", "12"],
    )


def expressions(rng: random.Random) -> Forms:
    a, b = rng.randint(1, 9), rng.randint(2, 9)
    square = rf"x^2 + {a + b}x + {a * b}"
    right = [square, rf"(x+{a})(x+{b})", rf"(x + {b})(x + {a})", f"x² + {a + b}x + {a * b}", f"x**2 + {a + b}*x + {a * b}"]
    wrong = [rf"x^2 + {a + b}x", rf"(x-{a})(x+{b})", rf"x^2 + {a + b + 1}x + {a * b}", str(a * b), rf"x^3 + {a + b}x + {a * b}"]
    return square, right, wrong


def roots(rng: random.Random) -> Forms:
    k, n = rng.randint(2, 9), rng.choice([2, 3, 5, 7])
    right = [rf"{k}\sqrt{{{n}}}", rf"\sqrt{{{k * k * n}}}", f"{k}√{n}", f"{k}*sqrt({n})", rf"{k} \cdot \sqrt{{{n}}}"]
    wrong = [
        rf"\sqrt{{{k * n}}}",
        str((k * k * n) ** 0.5),
        rf"{k}{n}",
        rf"{n}\sqrt{{{k * k * n + 1}}}",
        rf"-{k}\sqrt{{{n}}}",
        str(k),
    ]
    return rf"{k}\sqrt{{{n}}}", right, wrong


KINDS: dict[str, Callable[[random.Random], Forms]] = {
    "integer": integers, "fraction": fractions, "list": lists, "interval": intervals, "unit": units, "matrix": matrices, "words": words,
    "expression": expressions, "root": roots,
}  # fmt: skip
