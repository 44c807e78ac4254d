"""The code that runs inside the sandbox: one process holds the tests, and another, in its own sandbox, holds the program.

It is started as `python -I -S -c <this file> tester|program <fds>` and cannot import any other module of this project. The program never
sees a test: the tester calls the program's functions over a pipe, by value, and compares the results with its own objects. So a program cannot
replace what the tests call, read what they expect, write a verdict, or return an object that equals everything. It can only return data.
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

TYPE_CHECKING = False  # instead of importing typing, which takes time: a program is started for each completion
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
    """The program raised something that is not a builtin exception, or broke the protocol."""


class ProgramDied(BaseException):
    """The program's process has ended. Not an Exception, so that a test's `except Exception` does not take it for an answer."""


# ---- limits, set before any untrusted code runs ---------------------------------------------------------------------


def confine(limits: dict[str, Any]) -> None:
    """Sets hard limits for this process and its children and gives up privileges; neither can be undone."""
    import resource

    for name, value in limits["rlimits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    if limits["uid"] is not None:
        os.setgroups([])
        os.setresgid(limits["uid"], limits["uid"], limits["uid"])
        os.setresuid(limits["uid"], limits["uid"], limits["uid"])
    if limits["uid"] is not None and 0 in os.getresuid():
        raise SystemExit("expected to give up root, but it is still root")


# ---- values on the pipe ---------------------------------------------------------------------------------------------


def encode(value: Any, keep: Callable[[Any], Encoded], depth: int = 0) -> Encoded:
    """A value as JSON. Anything that is not plain data stays with its owner and is sent as a handle, which `keep` makes."""
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
    """The value that was sent; `find` looks up a handle."""
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
            raise ProgramError(f"{value!r} is not a module of the standard library")
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
            raise ProgramError(f"expected a message of at most {LONGEST_MESSAGE} bytes, found {len(line)}")
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
            raise ProgramError(f"expected an answer of at most {LONGEST_MESSAGE} bytes, found a longer one")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ProgramError("expected an answer of the protocol, found another value")
        return message


# ---- the program's process ------------------------------------------------------------------------------------------


def run_program(line: Line) -> None:
    """Executes the program, then answers the tester's calls until there are no more."""
    task = line.receive()
    confine(task["limits"])
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
        except BaseException as error:  # noqa: BLE001  anything that a program raises is its answer
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

    line.send(answer(lambda: exec(compile(task["source"], "solution.py", "exec"), namespace)))
    while True:
        message = line.receive()
        line.send(answer(functools.partial(perform, message)))


# ---- the tester's process -------------------------------------------------------------------------------------------


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
            raise ProgramError(f"expected an answer of the protocol: {error}") from error
        raise (
            kind(text)
            if isinstance(kind, type) and issubclass(kind, Exception) and kind not in UNPRINTABLE
            else ProgramError(text)
        )

    def handle(self, sent: Encoded) -> Handle:
        if sent["t"] != "handle":
            raise ProgramError("expected an answer of the protocol, found another value")
        return self.handles.setdefault(int(sent["v"]), Handle(self, int(sent["v"])))

    def encode(self, value: Any) -> Encoded:
        def keep(other: Any) -> Encoded:
            if isinstance(other, Handle):
                return {"t": "handle", "v": object.__getattribute__(other, "_handle_index")}
            raise TypeError(f"a test passes a {type(other).__name__}, which cannot be sent to the program")

        return encode(value, keep)


UNPRINTABLE = (
    UnicodeDecodeError,
    UnicodeEncodeError,
    UnicodeTranslateError,
    BaseExceptionGroup,
    ExceptionGroup,
)  # their constructors take more than a message


class Handle:
    """A function, class or object that stays with the program. It equals nothing but itself."""

    def __init__(self, program: Program, index: int) -> None:
        object.__setattr__(self, "_program", program)
        object.__setattr__(self, "_handle_index", index)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        program = object.__getattribute__(self, "_program")
        program.calls += 1
        index = object.__getattribute__(self, "_handle_index")
        return program.ask({"on": index, "args": program.encode(args), "kwargs": program.encode(kwargs)})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._program.ask({"on": self._handle_index, "attribute": name})

    def __setattr__(self, name: str, value: Any) -> None:
        self._program.ask({"on": self._handle_index, "set": name, "value": self._program.encode(value)})


def wanted_names(source: str) -> list[str]:
    """The names that the program must provide: those that the tests use but do not define, and that are not builtins.

    A task may ask for a function with the name of a builtin, as MBPP's task 126 asks for `sum`. The program provides it only if the tests use
    no other undefined name, so that it cannot replace a builtin that they judge by.
    """
    nodes = list(ast.walk(ast.parse(source)))
    used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    defined = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    defined |= {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    defined |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    defined |= {
        (alias.asname or alias.name).partition(".")[0]
        for node in nodes
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    undefined = used - defined
    return sorted(undefined - set(dir(builtins)) or (undefined if len(undefined) == 1 else ()))


def run_tests(line: Line, task: dict[str, Any]) -> dict[str, str]:
    """Runs the tests against the program and returns the verdict: the outcome, and what went wrong."""
    program = Program(line)
    try:
        line.send({"source": task["source"], "limits": task["limits"]})
        program.ask(None)
        namespace = {"__name__": "tests"}
        for name in wanted_names(task["tests"]):
            with contextlib.suppress(KeyError):  # the test that uses the name will fail
                namespace[name] = program.ask({"get": name})
        exec(compile(task["tests"], "tests.py", "exec"), namespace)
    except ProgramDied as error:
        return {"outcome": "crashed", "detail": str(error)}
    except AssertionError as error:
        return {"outcome": "wrong", "detail": str(error)}
    except BaseException as error:  # noqa: BLE001  anything that a test raises is a verdict, even SystemExit
        return {"outcome": "error", "detail": f"{type(error).__name__}: {error}"[:500]}
    if program.died:  # and a test caught the exception
        return {"outcome": "crashed", "detail": "the program ended"}
    if not program.calls:
        return {"outcome": "error", "detail": "expected tests that call the program, found none"}
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
