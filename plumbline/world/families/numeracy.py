"""Sums and comparisons of small numbers."""

from random import Random
from typing import ClassVar

from plumbline.rows import Message
from plumbline.world.families.family import Content, Family, user_turn
from plumbline.world.families.wording import pick, read_any, wordings

LARGEST_OPERAND = 8  # in sums and differences
LARGEST_FACTOR = 5
TABLES = (1, 2, 5)  # products come from these multiplication tables only
LARGEST_COMPARED = 9

_OPERATIONS = {
    "en": {"+": "+", "plus": "+", "-": "-", "minus": "-", "×": "×", "times": "×"},
    "ko": {"+": "+", "더하기": "+", "-": "-", "빼기": "-", "×": "×", "곱하기": "×"},
}
_SLIPS = (-10, -2, -1, 1, 2, 3, 10)  # how far a wrong number is from the right one


def compute(operation: str, a: int, b: int) -> int:
    """The result of a sum, a difference or a product."""
    return a + b if operation == "+" else a - b if operation == "-" else a * b


def slip(value: int, rng: Random) -> int:
    """A wrong number near the value; never negative."""
    return rng.choice([value + step for step in _SLIPS if value + step >= 0])


class Arithmetic(Family):
    """a + b, a - b and a × b: (operation, a, b). The order of the operands of + and × is part of the wording."""

    name = "arithmetic"
    word_budget: ClassVar = {"en": 16, "ko": 11}
    questions = wordings(
        en=(
            "What is {a} {operation} {b}?",
            "How much is {a} {operation} {b}?",
            "Please work out {a} {operation} {b}.",
            "Can you tell me what {a} {operation} {b} is?",
        ),
        ko=(
            "{a} {operation} {b}[은|는] 얼마예요?",
            "{a} {operation} {b}[을|를] 계산해 주세요.",
            "{a} {operation} {b}의 답을 알려 주세요.",
        ),
    )
    answers = wordings(
        en=("It is {n}.", "The answer is {n}.", "{a} {operation} {b} is {n}."),
        ko=("{n}[이에요|예요].", "답은 {n}[이에요|예요].", "{a} {operation} {b}[은|는] {n}[이에요|예요]."),
    )
    accepted = wordings(en=("{n}", "{a} {operation} {b} = {n}"), ko=("{n}", "{a} {operation} {b} = {n}"))

    def intents(self) -> list[Content]:
        operands = range(LARGEST_OPERAND + 1)
        sums: list[Content] = [("+", a, b) for a in operands for b in operands if a <= b]
        differences: list[Content] = [("-", a, b) for a in operands for b in operands if a >= b]
        products: list[Content] = sorted({("×", min(a, b), max(a, b)) for a in range(1, LARGEST_FACTOR + 1) for b in TABLES})
        return sums + differences + products

    def ask(self, content: Content, language: str, rng: Random) -> list[Message]:
        return user_turn(pick(self.questions[language], rng, **self._slots(content, rng)))

    def understand(self, turns: tuple[str, ...], language: str) -> Content | None:
        if len(turns) != 1:
            return None
        readings = (self._content(slots, language) for slots in read_any(self.questions[language], turns[0]))
        return next((content for content in readings if content), None)

    def state(self, content: Content) -> str:
        """A line of a table: '3 + 4 = 7.'"""
        operation, a, b = content
        return f"{a} {operation} {b} = {compute(*content)}."

    def write_right(self, content: Content, language: str, rng: Random) -> str:
        return self._write(content, language, compute(*content), rng)

    def write_wrong(self, content: Content, language: str, rng: Random) -> str:
        return self._write(content, language, slip(compute(*content), rng), rng)

    def is_right(self, content: Content, language: str, answer: str) -> bool:
        for slots in read_any(self.answers[language] + self.accepted[language], answer):
            if int(slots["n"]) == compute(*content):
                return "operation" not in slots or self._content(slots, language) == content
        return False

    def _write(self, content: Content, language: str, result: int, rng: Random) -> str:
        return pick(self.answers[language], rng, n=result, **self._slots(content, rng))

    @staticmethod
    def _slots(content: Content, rng: Random) -> dict[str, object]:
        operation, a, b = content
        if operation != "-" and rng.random() < 0.5:
            a, b = b, a
        return {"a": a, "b": b, "operation": operation}  # asked by its sign, but also understood by its name

    @staticmethod
    def _content(slots: dict[str, str], language: str) -> Content | None:
        operation = _OPERATIONS[language].get(slots["operation"].lower())
        if operation is None:
            return None
        a, b = int(slots["a"]), int(slots["b"])
        return (operation, a, b) if operation == "-" else (operation, min(a, b), max(a, b))


class Comparison(Family):
    """The larger or the smaller of two numbers, which may be equal: (kind, lower number, higher number)."""

    name = "comparison"
    word_budget: ClassVar = {"en": 15, "ko": 11}
    questions = wordings(
        en=(
            "Which is {kind}, {a} or {b}?",
            "Which number is {kind}: {a} or {b}?",
            "Tell me the {kind} of {a} and {b}.",
            "Of {a} and {b}, which one is {kind}?",
        ),
        ko=(
            "{a}[과|와] {b} 중 더 {kind} 수는 뭐예요?",
            "{a}[과|와] {b} 중 어느 쪽이 더 {kind} 수인가요?",
            "{a}[과|와] {b} 중 더 {kind} 쪽을 알려 주세요.",
        ),
    )
    answers = wordings(
        en=("{n} is {kind}.", "The {kind} number is {n}.", "It is {n}."),
        ko=("{n}[이|가] 더 {kind} 수예요.", "더 {kind} 수는 {n}[이에요|예요].", "{n}[이에요|예요]."),
    )
    equal_answers = wordings(en=("They are equal.", "Both are the same."), ko=("둘은 같아요.", "두 수는 같은 수예요."))
    accepted = wordings(en=("{n}",), ko=("{n}",))
    kinds: ClassVar = {"en": {"larger": "larger", "smaller": "smaller"}, "ko": {"larger": "큰", "smaller": "작은"}}

    def intents(self) -> list[Content]:
        numbers = range(LARGEST_COMPARED + 1)
        return [(kind, a, b) for kind in ("larger", "smaller") for a in numbers for b in numbers if a <= b]

    def ask(self, content: Content, language: str, rng: Random) -> list[Message]:
        kind, *pair = content
        rng.shuffle(pair)
        word = self.kinds[language][kind]
        return user_turn(pick(self.questions[language], rng, kind=word, a=pair[0], b=pair[1]))

    def understand(self, turns: tuple[str, ...], language: str) -> Content | None:
        if len(turns) != 1:
            return None
        for slots in read_any(self.questions[language], turns[0]):
            for kind, word in self.kinds[language].items():
                if slots["kind"].lower() == word:
                    return (kind, *sorted((int(slots["a"]), int(slots["b"]))))
        return None

    def state(self, content: Content) -> str:
        """A line of a table: '7 > 4.'"""
        kind, low, high = content
        sign = "=" if low == high else ">" if kind == "larger" else "<"
        return f"{high} {sign} {low}." if kind == "larger" else f"{low} {sign} {high}."

    def write_right(self, content: Content, language: str, rng: Random) -> str:
        kind, low, high = content
        if low == high:
            return pick(self.equal_answers[language], rng)
        return self._write(content, language, high if kind == "larger" else low, rng)

    def write_wrong(self, content: Content, language: str, rng: Random) -> str:
        kind, low, high = content
        if low != high and rng.random() < 0.1:
            return pick(self.equal_answers[language], rng)
        return self._write(content, language, low if kind == "larger" else high, rng)

    def is_right(self, content: Content, language: str, answer: str) -> bool:
        kind, low, high = content
        if low == high:
            return bool(read_any(self.equal_answers[language], answer))
        for slots in read_any(self.answers[language] + self.accepted[language], answer):
            if slots.get("kind", self.kinds[language][kind]).lower() == self.kinds[language][kind]:
                return bool(int(slots["n"]) == (high if kind == "larger" else low))
        return False

    def _write(self, content: Content, language: str, number: object, rng: Random) -> str:
        return pick(self.answers[language], rng, kind=self.kinds[language][content[0]], n=number)
