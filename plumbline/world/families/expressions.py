"""Small Python expressions, and a whitelist evaluator for them: text is parsed, never executed."""

import ast
from collections.abc import Callable
from random import Random
from typing import Any, ClassVar

from plumbline.rows import Message
from plumbline.world.families.family import Content, Family, user_turn
from plumbline.world.families.lexicon import load_words
from plumbline.world.families.wording import pick, read_any, wordings

Value = Any  # a number, a string, a bool, or a flat list of these

LONGEST_EXPRESSION = 120  # characters
LONGEST_VALUE = 200  # characters of a string, items of a list
LARGEST_NUMBER = 10**6

_FUNCTIONS: dict[str, Callable[..., Value]] = {"len": len, "max": max, "min": min, "sum": sum, "sorted": sorted}


class ExpressionError(ValueError):
    """The text is not an expression that the evaluator accepts."""


def evaluate_expression(text: str, *, literals_only: bool = False) -> Value:
    """The value of an expression of numbers, strings, lists, indexing, + - *, comparison and five functions.

    Nothing else is accepted: no names, attributes, keywords or comprehensions, and no value beyond the module's limits, which are
    checked before a value is built. This guards against hostile text. It is not a sandbox for anything larger.

    Raises:
        ExpressionError: the text is anything else.
    """
    if len(text) > LONGEST_EXPRESSION:
        raise ExpressionError(f"expected at most {LONGEST_EXPRESSION} characters, found {len(text)}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        value = _value(tree, literals_only)
    except (SyntaxError, ValueError, TypeError, IndexError, RecursionError, MemoryError) as error:
        raise ExpressionError(f"cannot evaluate {text!r}: {error}") from error
    return value


def _value(node: ast.expr, literals_only: bool) -> Value:
    match node:
        case ast.Constant(value=bool() | int() | str() as constant):
            return _limited(constant)
        case ast.List(elts=items):
            return _limited([_value(item, literals_only) for item in items])
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(_value(operand, literals_only))
    if literals_only:
        raise ExpressionError(f"expected a literal, found {type(node).__name__}")
    match node:
        case ast.BinOp(left=left, op=operator, right=right):
            return _limited(_combine(_value(left, False), operator, _value(right, False)))
        case ast.Compare(left=left, ops=[operator], comparators=[right]):
            return _compare(_value(left, False), operator, _value(right, False))
        case ast.Subscript(value=sequence, slice=index):
            return _index(_value(sequence, False), _value(index, False))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _limited(_FUNCTIONS[name](*[_value(argument, False) for argument in arguments]))
    raise ExpressionError(f"expected a whitelisted expression, found {type(node).__name__}")


def _number(value: Value) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ExpressionError(f"expected a number, found {value!r}")
    return value


def _combine(left: Value, operator: ast.operator, right: Value) -> Value:
    match operator:
        case ast.Add() if isinstance(left, str) and isinstance(right, str):
            return left + right
        case ast.Add() if isinstance(left, list) and isinstance(right, list):
            return left + right
        case ast.Add():
            return _number(left) + _number(right)
        case ast.Sub():
            return _number(left) - _number(right)
        case ast.Mult() if isinstance(left, str | list):
            if len(left) * _number(right) > LONGEST_VALUE:
                raise ExpressionError(f"expected at most {LONGEST_VALUE} items, found a repetition that gives more")
            return left * _number(right)
        case ast.Mult():
            return _number(left) * _number(right)
    raise ExpressionError(f"expected +, - or *, found {type(operator).__name__}")


def _compare(left: Value, operator: ast.cmpop, right: Value) -> bool:
    match operator:
        case ast.Eq():
            return bool(left == right)
        case ast.Gt():
            return _number(left) > _number(right)
        case ast.Lt():
            return _number(left) < _number(right)
        case ast.In() if isinstance(right, str | list):
            return bool(left in right)
    raise ExpressionError(f"expected ==, <, > or in, found {type(operator).__name__}")


def _index(sequence: Value, index: Value) -> Value:
    if not isinstance(sequence, str | list):
        raise ExpressionError(f"expected a string or a list to index, found {sequence!r}")
    return sequence[_number(index)]


def _limited(value: Value) -> Value:
    if isinstance(value, str | list) and len(value) > LONGEST_VALUE:
        raise ExpressionError(f"expected at most {LONGEST_VALUE} items, found {len(value)}")
    if isinstance(value, list) and any(isinstance(item, list) for item in value):
        raise ExpressionError("expected a flat list, found a nested one")  # its size would be hard to bound
    if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        raise ExpressionError(f"expected a number up to {LARGEST_NUMBER}, found a larger one")
    return value


_STRINGS: dict[str, list[str]] = load_words("expressions")


class PythonExpression(Family):
    """The value of an expression; the answer must be a Python literal."""

    name = "python"
    word_budget: ClassVar = {"en": 16, "ko": 11}
    questions = wordings(
        en=(
            "What does {expression} give in Python?",
            "In Python, what is {expression}?",
            "Evaluate the Python expression {expression}",
            "Please tell me the value of {expression} in Python.",
        ),
        ko=(
            "파이썬에서 {expression}의 값은 뭐예요?",
            "파이썬 식 {expression}의 결과를 알려 주세요.",
            "파이썬으로 {expression}[을|를] 계산하면 뭐가 나와요?",
        ),
    )
    answers = wordings(
        en=("It gives {value}.", "The result is {value}.", "The value is {value}."),
        ko=("결과는 {value}[이에요|예요].", "값은 {value}[이에요|예요].", "{value}[이에요|예요]."),
    )
    accepted = wordings(en=("{value}",), ko=("{value}",))

    def intents(self) -> list[Content]:
        rng = Random("the closed world's Python expressions")  # the same for every seed of a data set
        expressions = [f"len({word!r})" for word in _STRINGS["words"]]
        expressions += [f"{syllable!r} * {count}" for syllable in _STRINGS["syllables"] for count in (2, 3)]
        expressions += [f"{word!r}[{index}]" for word in _STRINGS["words"] for index in (0, -1)]
        for _ in range(20):
            numbers = rng.sample(range(10), 3)
            expressions += [f"max({numbers})", f"min({numbers})", f"sorted({numbers})", f"{numbers}[{rng.randrange(3)}]"]
            expressions += [f"{numbers[0]} in {rng.sample(range(10), 3)}", f"{numbers[1]} > {numbers[2]}"]
            expressions += [f"sum({numbers[:2]})", f"len({rng.choices(range(10), k=rng.randint(1, 5))})"]
        return [(expression,) for expression in dict.fromkeys(expressions)]

    def ask(self, content: Content, language: str, rng: Random) -> list[Message]:
        return user_turn(pick(self.questions[language], rng, expression=content[0]))

    def understand(self, turns: tuple[str, ...], language: str) -> Content | None:
        if len(turns) != 1:
            return None
        for slots in read_any(self.questions[language], turns[0]):
            try:
                evaluate_expression(slots["expression"])
            except ExpressionError:
                continue
            return (ast.unparse(ast.parse(slots["expression"].strip(), mode="eval")),)
        return None

    def state(self, content: Content) -> str:
        """A line of a table: 'len([2, 5]) == 2.'"""
        return f"{content[0]} == {evaluate_expression(content[0])!r}."

    def write_right(self, content: Content, language: str, rng: Random) -> str:
        return pick(self.answers[language], rng, value=repr(evaluate_expression(content[0])))

    def write_wrong(self, content: Content, language: str, rng: Random) -> str:
        return pick(self.answers[language], rng, value=repr(_mistake(evaluate_expression(content[0]), rng)))

    def is_right(self, content: Content, language: str, answer: str) -> bool:
        expected = evaluate_expression(content[0])
        for slots in read_any(self.answers[language] + self.accepted[language], answer):
            try:
                value = evaluate_expression(slots["value"], literals_only=True)
            except ExpressionError:
                continue
            if type(value) is type(expected) and value == expected:
                return True
        return False


def _mistake(value: Value, rng: Random) -> Value:
    """A value of the same type that somebody might well give instead."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + rng.choice((1, 2)) if value == 0 else value + rng.choice((-1, 1))
    if isinstance(value, str):
        return rng.choice([other for other in (value[1:], value + value[-1], "a", "e") if other not in ("", value)])
    others = (value[::-1], [*value[1:], value[0]])
    return rng.choice([other for other in others if other != value] or [[*value, 0]])
