"""What runs inside the sandbox: one process that holds the tests, and another, in a sandbox of its own, that holds the program.

Started as `python -I -S -c <this file> tester|program <fds>`, with no other module of this project in reach. The program never sees a
test: the tester calls its functions over a pipe, by value, and compares with objects of its own. So a program cannot replace what the tests
call, read what they expect, write a verdict, or return an object that equals everything; all that it can do is to return data.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
import importlib
import json
import os
import sys
from collections import deque
from decimal import Decimal
from fractions import Fraction

TYPE_CHECKING = False  # typing itself is not imported: a program is started for each completion
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Encoded = dict[str, Any]  # {"t": kind, "v": value}
    Message = dict[str, Any]

LONGEST_MESSAGE = 1 << 20  # bytes
DEEPEST = 100  # nested containers
TYPES = {
    kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict, range)
}


class ProgramError(Exception):
    """The program raised something that is no builtin exception, or broke the protocol."""


class ProgramDied(BaseException):
    """The program's process is gone; no `except Exception` of a test may take that for an answer."""


# ---- limits, set before anything that is not trusted runs -----------------------------------------------------------


def confine(limits: dict[str, Any]) -> None:
    """Gives up privileges and sets hard limits for this process and its children, for good."""
    import resource

    for name, value in limits["rlimits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    if limits["uid"] is not None:
        os.setgroups([])
        os.setresgid(limits["uid"], limits["uid"], limits["uid"])
        os.setresuid(limits["uid"], limits["uid"], limits["uid"])
    if limits["uid"] is not None and 0 in os.getresuid():
        raise SystemExit("privileges could not be given up")


# ---- values by value ------------------------------------------------------------------------------------------------


def encode(value: Any, keep: Callable[[Any], Encoded], depth: int = 0) -> Encoded:
    """A value as JSON; what is no plain data is kept by its owner and sent as a handle, by `keep`."""
    if depth > DEEPEST:
        raise ProgramError("nested too deeply")
    if value is None or type(value) in (bool, str):
        return {"t": "plain", "v": value}
    numbers: tuple[tuple[Any, str], ...] = (
        (bool, "bool"),
        (int, "int"),
        (float, "float"),
        (complex, "complex"),
        (Decimal, "decimal"),
        (Fraction, "fraction"),
    )
    for kind, name in numbers:
        if isinstance(value, kind):
            return {"t": name, "v": repr(value) if kind in (int, float, complex) and type(value) is kind else str(kind(value))}
    if isinstance(value, str):
        return {"t": "plain", "v": str.__str__(value)}
    if isinstance(value, (bytes, bytearray)):
        return {"t": "bytes", "v": list(value)}
    if isinstance(value, range):
        return {"t": "range", "v": [value.start, value.stop, value.step]}
    containers: tuple[tuple[Any, str], ...] = (
        (list, "list"),
        (tuple, "tuple"),
        (set, "set"),
        (frozenset, "frozenset"),
        (deque, "deque"),
    )
    for kind, name in containers:
        if isinstance(value, kind):
            return {"t": name, "v": [encode(item, keep, depth + 1) for item in value]}
    if isinstance(value, dict):
        return {"t": "dict", "v": [[encode(key, keep, depth + 1), encode(item, keep, depth + 1)] for key, item in value.items()]}
    if isinstance(value, type(sys)):
        return {"t": "module", "v": value.__name__}
    if isinstance(value, type) and any(value is kind for kind in TYPES.values()):
        return {"t": "type", "v": value.__name__}
    if hasattr(type(value), "__next__"):
        return {"t": "iterator", "v": [encode(item, keep, depth + 1) for item in value]}
    return keep(value)


def decode(sent: Encoded, find: Callable[[Encoded], Any]) -> Any:
    """The value that was sent; `find` makes something of a handle."""
    kind, value = sent["t"], sent["v"]
    plain: dict[str, Callable[[Any], Any]]
    plain = {"plain": lambda v: v, "bool": lambda v: v == "True", "int": int, "float": float, "complex": complex, "decimal": Decimal,
             "fraction": Fraction, "bytes": bytes, "range": lambda v: range(*v), "type": TYPES.__getitem__}  # fmt: skip
    if kind in plain:
        return plain[kind](value)
    if kind == "dict":
        return {decode(key, find): decode(item, find) for key, item in value}
    if kind == "module":
        if value.partition(".")[0] not in sys.stdlib_module_names:
            raise ProgramError(f"{value!r} is no module of the standard library")
        return importlib.import_module(value)
    containers: dict[str, Callable[[Any], Any]] = {
        "list": list,
        "tuple": tuple,
        "set": set,
        "frozenset": frozenset,
        "deque": deque,
        "iterator": iter,
    }
    if kind in containers:
        return containers[kind]([decode(item, find) for item in value])
    return find(sent)


class Line:
    """Messages as lines of JSON over two pipes."""

    def __init__(self, reads: int, writes: int) -> None:
        self.reads, self.writes = os.fdopen(reads, "rb"), os.fdopen(writes, "wb")

    def send(self, message: Message) -> None:
        line = json.dumps(message).encode() + b"\n"
        if len(line) > LONGEST_MESSAGE:
            raise ProgramError(f"a message of {len(line)} bytes; {LONGEST_MESSAGE} fit")
        try:
            self.writes.write(line)
            self.writes.flush()
        except OSError as error:
            raise ProgramDied("the program ended") from error

    def receive(self) -> Message:
        line = self.reads.readline(LONGEST_MESSAGE + 1)
        if not line:
            raise ProgramDied("the program ended")
        if not line.endswith(b"\n"):
            raise ProgramError(f"an answer of more than {LONGEST_MESSAGE} bytes")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ProgramError("an answer that is none")
        return message


# ---- the program's side ---------------------------------------------------------------------------------------------


def run_program(line: Line) -> None:
    """Executes the program, then answers calls until the tester has no more."""
    first = line.receive()
    confine(first["limits"])
    namespace = {"__name__": "solution", "__builtins__": builtins}
    kept: list[Any] = []

    def keep(value: Any) -> Encoded:
        kept.append(value)
        return {"t": "handle", "v": len(kept) - 1}

    def find(sent: Encoded) -> Any:
        return kept[sent["v"]]

    def answer(act: Callable[[], Any]) -> Message:
        try:
            return {"value": encode(act(), keep)}
        except BaseException as error:  # noqa: BLE001  whatever a program raises is its answer
            kind = next(
                (base.__name__ for base in type(error).__mro__ if getattr(builtins, base.__name__, None) is base), "Exception"
            )
            return {"error": kind, "message": str(error)[:500]}

    def perform(message: Message) -> Any:
        if "get" in message:
            return namespace[message["get"]]
        target = kept[message["on"]]
        if "attribute" in message:
            return getattr(target, message["attribute"])
        if "set" in message:
            return setattr(target, message["set"], decode(message["value"], find))
        return target(*decode(message["args"], find), **decode(message["kwargs"], find))

    line.send(answer(lambda: exec(compile(first["source"], "solution.py", "exec"), namespace)))
    while True:
        message = line.receive()
        line.send(answer(functools.partial(perform, message)))


# ---- the tester's side ----------------------------------------------------------------------------------------------


class Program:
    """The program as the tester sees it."""

    def __init__(self, line: Line) -> None:
        self.line, self.calls, self.died = line, 0, False
        self.handles: dict[int, Handle] = {}

    def ask(self, message: Message | None) -> Any:
        try:
            if message:
                self.line.send(message)
            reply = self.line.receive()
            if "error" in reply:
                kind, text = getattr(builtins, str(reply["error"]), None), str(reply.get("message"))
            else:
                return decode(reply["value"], self.handle)
        except ProgramDied:
            self.died = True
            raise
        except (KeyError, TypeError, ValueError, RecursionError, MemoryError, ImportError, ArithmeticError) as error:
            raise ProgramError(f"an answer that is none: {error}") from error
        raise (
            kind(text)
            if isinstance(kind, type) and issubclass(kind, Exception) and kind not in UNPRINTABLE
            else ProgramError(text)
        )

    def handle(self, sent: Encoded) -> Handle:
        if sent["t"] != "handle":
            raise ProgramError("an answer that is none")
        return self.handles.setdefault(int(sent["v"]), Handle(self, int(sent["v"])))

    def encode(self, value: Any) -> Encoded:
        def keep(other: Any) -> Encoded:
            if isinstance(other, Handle):
                return {"t": "handle", "v": object.__getattribute__(other, "_place")}
            raise TypeError(f"a test passes a {type(other).__name__}, which cannot be sent to the program")

        return encode(value, keep)


UNPRINTABLE = (
    UnicodeDecodeError,
    UnicodeEncodeError,
    UnicodeTranslateError,
    BaseExceptionGroup,
    ExceptionGroup,
)  # take other arguments


class Handle:
    """Something that only the program has: a function, a class, an object. It equals nothing but itself."""

    def __init__(self, program: Program, place: int) -> None:
        object.__setattr__(self, "_program", program)
        object.__setattr__(self, "_place", place)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        program = object.__getattribute__(self, "_program")
        program.calls += 1
        place = object.__getattribute__(self, "_place")
        return program.ask({"on": place, "args": program.encode(args), "kwargs": program.encode(kwargs)})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._program.ask({"on": self._place, "attribute": name})

    def __setattr__(self, name: str, value: Any) -> None:
        self._program.ask({"on": self._place, "set": name, "value": self._program.encode(value)})


def wanted_names(source: str) -> list[str]:
    """The names that tests use and neither define nor find among the builtins: what the program has to give.

    A task may ask for a function that is named as a builtin is, as MBPP's 126 for `sum`. The program gives it where the tests use no other
    name: so it can replace no builtin by which they judge.
    """
    nodes = list(ast.walk(ast.parse(source)))
    used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    given = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    given |= {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    given |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    given |= {
        (alias.asname or alias.name).partition(".")[0]
        for node in nodes
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    asked = used - given
    return sorted(asked - set(dir(builtins)) or (asked if len(asked) == 1 else ()))


def run_tests(line: Line, task: dict[str, Any]) -> dict[str, str]:
    """Runs the tests against the program; returns the verdict: passed, or why not."""
    program = Program(line)
    try:
        line.send({"source": task["source"], "limits": task["limits"]})
        program.ask(None)
        namespace = {"__name__": "tests"}
        for name in wanted_names(task["tests"]):
            with contextlib.suppress(KeyError):  # the test that uses it will say so
                namespace[name] = program.ask({"get": name})
        exec(compile(task["tests"], "tests.py", "exec"), namespace)
    except ProgramDied as error:
        return {"outcome": "crashed", "detail": str(error)}
    except AssertionError as error:
        return {"outcome": "wrong", "detail": str(error)}
    except BaseException as error:  # noqa: BLE001  whatever a test raises is a verdict, SystemExit too
        return {"outcome": "error", "detail": f"{type(error).__name__}: {error}"[:500]}
    if program.died:  # a test swallowed it
        return {"outcome": "crashed", "detail": "the program ended"}
    if not program.calls:
        return {"outcome": "error", "detail": "the tests called nothing of the program"}
    return {"outcome": "passed", "detail": ""}


def main() -> None:
    role, *descriptors = sys.argv[1:]
    sys.set_int_max_str_digits(100_000)
    if role == "program":
        run_program(Line(*map(int, descriptors)))
        return
    reads, writes, tasks, verdicts = map(int, descriptors)
    with os.fdopen(tasks, "rb") as file:
        task = json.loads(file.read())
    confine(task["limits"])
    line = Line(reads, writes)
    verdict = json.dumps(run_tests(line, task)).encode()
    with os.fdopen(verdicts, "wb") as file:
        file.write(verdict)
    os._exit(0)


if __name__ == "__main__":
    main()
