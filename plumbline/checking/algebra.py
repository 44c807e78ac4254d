"""Compares two answers as mathematics: fractions, expressions, equations, sets, intervals and matrices, in LaTeX.

Math-Verify (https://github.com/huggingface/Math-Verify) and SymPy read and compare them, with three differences:

- decimals are exact: 0.333333 is not 1/3 (Math-Verify rounds to six places, so 0.0 would equal 10^{-7});
- letters after a number are not dropped as a unit (`2+3t` is not 5), but a trailing `\\text{…}` is;
- an answer of which Math-Verify's grammar reads only the beginning (`314_8`, `3:4`) is compared as text.

SymPy may never finish with an answer such as $9^{9^{9}}$. All this therefore happens in a child process, which is ended after some seconds of
*processor* time, so that the load on the machine changes no verdict. The parent sets no signals and can be used from any thread. The child
evaluates no Python that it reads, but it is not a sandbox: only its memory and time are limited.

Known limits: case is ignored; `(1, 2)` is both a point and an open interval; floating-point input such as `1e-5` is read as e − 5.
"""

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

SECONDS = 2.0  # processor time for one comparison
PATIENCE = 60.0  # seconds of wall time for a reply on a busy machine, and for the child's start
MEMORY_MIB = 2048  # address space
LONGEST = 400  # characters of an answer; a longer one is not read
DEEPEST = 24  # nested brackets

# ---- answers in the notation that Math-Verify reads best --------------------------------------------------------------

_SYMBOLS = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "±": r"\pm ", "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup ",
    "∩": r"\cap ", "∅": r"\emptyset ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "<=": r"\le ", ">=": r"\ge ", "!=": r"\ne ", "²": "^{2}",
    "³": "^{3}", "**": "^", r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\$": "", "$": "", r"\%": "", "%": "", r"\!": "", r"\,": " ",
    r"\;": " ", r"\:": " ", "{,}": ",", r"\displaystyle": "",
}  # fmt: skip
_PLAIN = (
    (
        re.compile(r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)|√\s*\(([^()]*)\)|√\s*(\w+)"),
        lambda m: rf"\sqrt{{{m[1] or m[2] or m[3] or ''}}}",
    ),
    (re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])"), lambda m: r"\pi "),
    (re.compile(r"(?<![\\A-Za-z])(?:oo|inf|infinity)(?![A-Za-z])"), lambda m: r"\infty "),
    (re.compile(r"(?<![\d./^_])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d./])"), lambda m: rf"{m[1]}\frac{{{m[2]}}}{{{m[3]}}}"),
    (re.compile(r"\^\s*\(([^()]*)\)"), lambda m: f"^{{{m[1]}}}"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)(?!\d)"), lambda m: rf"\frac{{{m[1]}}}{{{m[2]}}}"),
)
_UNIT = re.compile(r"(?<=\S)\s*\\(?:text|mathrm|mbox|textbf)\s*\{[^{}]*\}(?:\s*\^\s*\{?\d\}?)?\s*$")
_PARTLY_READ = re.compile(r"\d\s*_|[:;?@#~`\"]|(?<![\d,._])\d+\s+\d|!.*!")
_WORD = re.compile(r"[A-Za-z]{3,}|[^\x00-\x7f]")
_NAMES = {
    "sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "sqrt", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "and", "mod", "gcd",
    "lcm", "max", "min",
}  # fmt: skip


def as_latex(text: str) -> str:
    """An answer in LaTeX: symbols and plain notation (`sqrt(2)`, `1 1/2`, `x**2`) become commands; currency, per cent and units are removed."""
    text = text.strip()
    for symbol, command in _SYMBOLS.items():
        text = text.replace(symbol, command)
    for pattern, replacement in _PLAIN:
        text = pattern.sub(replacement, text)
    return _UNIT.sub("", text.strip().rstrip(".")).strip()


def too_large(text: str) -> bool:
    """Whether an answer is too long or too deeply nested to be read."""
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return len(text) > LONGEST or deepest > DEEPEST


def words_in(text: str) -> list[str]:
    """The words that are not mathematics, which Math-Verify would read as products of their letters."""
    bare = re.sub(r"\\(?:text|mathrm|mbox|textbf|begin|end|operatorname)\s*\{[^{}]*\}|\\[A-Za-z]+", " ", text)
    return [word for word in _WORD.findall(bare) if word.lower() not in _NAMES]


# ---- the parent process -----------------------------------------------------------------------------------------------


class Algebra:
    """Compares answers in a child process, which is started at the first question and again after it has ended."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self.child: subprocess.Popen[bytes] | None = None
        self.lock = threading.Lock()

    def outcome(self, expected: str, answer: str) -> str:
        """How an answer compares with the reference `expected`: right, wrong, unreadable, timeout or crashed."""
        if too_large(answer):
            return "unreadable"
        expected, answer = as_latex(expected), as_latex(answer)
        if words_in(answer) or not answer:
            return "unreadable"
        if _PARTLY_READ.search(expected) or _PARTLY_READ.search(answer):
            return "right" if "".join(expected.split()) == "".join(answer.split()) else "wrong"
        return self._ask({"expected": expected, "answer": answer})

    def unreadable(self, references: Iterable[str]) -> str | None:
        """The first reference that cannot be read; None if all can."""
        for reference in references:
            latex = as_latex(reference)
            fault = too_large(latex) or words_in(latex) or not latex
            if fault or (not _PARTLY_READ.search(latex) and self._ask({"expected": latex, "answer": latex}) != "right"):
                return reference
        return None

    def close(self) -> None:
        """Ends the child process."""
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            for pipe in (self.child.stdin, self.child.stdout):
                with suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]
        self.child = None

    __del__ = close

    def _ask(self, task: dict[str, str]) -> str:
        with self.lock:
            for _ in range(2):  # a child that something else killed between two questions is replaced once
                child = self.child or self._start()
                assert child.stdin
                try:
                    child.stdin.write(json.dumps(task).encode() + b"\n")
                    child.stdin.flush()
                    break
                except BrokenPipeError:
                    self.close()
            reply = self._read_line(child)
            if reply is not None and reply.endswith(b"\n"):
                return str(json.loads(reply))
            if reply is not None:
                child.wait()
            outcome = "timeout" if reply is None or child.returncode == -signal.SIGPROF else "crashed"
            self.close()
            return outcome

    def _start(self) -> "subprocess.Popen[bytes]":
        """Starts a child and waits until it has loaded its libraries.

        Raises:
            RuntimeError: the child did not start, so scores would mean nothing.
        """
        self.child = subprocess.Popen(
            [sys.executable, "-I", "-B", __file__, str(self.seconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env={"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "PATH": os.environ.get("PATH", "")},
            start_new_session=True,
        )  # fmt: skip
        if self._read_line(self.child) != b'"ready"\n':
            self.close()
            raise RuntimeError(
                "kind: math: expected the process that compares answers to start, but it did not: install math-verify from requirements.lock"
            )
        return self.child

    def _read_line(self, child: "subprocess.Popen[bytes]") -> bytes | None:
        """The child's next line, or a part of it if the child ends; None if neither happens in time."""
        assert child.stdout
        line, deadline = b"", time.monotonic() + PATIENCE
        while not line.endswith(b"\n"):
            readable, _, _ = select.select([child.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                return None
            part = os.read(child.stdout.fileno(), 1 << 12)
            if not part:
                break
            line += part
        return line


# ---- the child process ------------------------------------------------------------------------------------------------


def serve(seconds: float) -> None:
    """Answers questions, one a line; a question that takes more processor time than `seconds` ends the process with SIGPROF."""
    import logging
    import resource

    logging.disable(logging.CRITICAL)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is not a reply
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MIB << 20, MEMORY_MIB << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    compared("1", r"\frac{2}{2}")  # builds the parser, whose time must not count as a question's
    reply: Any = "ready"
    while True:
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()
        question = sys.stdin.readline()
        if not question:
            return
        signal.setitimer(signal.ITIMER_PROF, seconds)
        reply = compared(**json.loads(question))
        signal.setitimer(signal.ITIMER_PROF, 0)


def compared(expected: str, answer: str) -> str:
    """Compares an answer with the reference: right, wrong, or unreadable if either cannot be read."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify
    from sympy import Basic, Float, MatrixBase, Rational

    normalization = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    latex = [LatexExtractionConfig(boxed_match_priority=-1, normalization_config=normalization)]

    def read(text: str) -> Any:
        candidates = parse(f"${text}$", latex, parsing_timeout=None)
        if not candidates or not isinstance(candidates[0], (Basic, MatrixBase)):
            return None
        return candidates[0].xreplace({number: Rational(str(number)) for number in candidates[0].atoms(Float)})

    gold, target = read(expected), read(answer)
    if gold is None or target is None:
        return "unreadable"
    # the order of the arguments matters: the reference decides how an equation is read
    equal = verify(gold, target, numeric_precision=50, allow_set_relation_comp=True, timeout_seconds=None)
    return "right" if equal else "wrong"


if __name__ == "__main__":
    serve(float(sys.argv[1]))
