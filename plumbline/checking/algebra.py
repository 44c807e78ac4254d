"""Compares two answers as mathematics: fractions, expressions, equations, sets, intervals and matrices, in LaTeX.

Math-Verify (https://github.com/huggingface/Math-Verify) and SymPy read and compare them, with three differences:

- decimals are exact: 0.333333 is not 1/3 (Math-Verify rounds to six places, so 0.0 would equal 10^{-7});
- letters after a number are not dropped as a unit (`2+3t` is not 5), but a trailing `\\text{…}` is;
- an answer of which Math-Verify's grammar reads only the beginning (`314_8`, `3:4`), and one in words (`\\text{east}`), is compared as text.

SymPy may never finish with an answer such as $9^{9^{9}}$. All this therefore happens in a child process, which is ended after some seconds of
*processor* time, so that the load on the machine changes no verdict. The parent sets no signals and can be used from any thread. The child
evaluates no Python that it reads, but it is not a sandbox: only its memory and time are limited.

Known limits: case is ignored; `(1, 2)` is a point, an open interval and the list `1, 2`.
"""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress

from plumbline.checking import symbolic
from plumbline.checking.notation import PARTLY_READ, as_latex, as_words, is_text, last_side, tokens, too_large, unit_of, words_in

SECONDS = 2.0  # processor time for one comparison
PATIENCE = 60.0  # seconds of wall time for a reply on a busy machine, and for the child's start


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
        if is_text(expected):
            return "right" if as_words(expected) == as_words(answer) else "wrong"
        units = {unit_of(expected), unit_of(answer)} - {""}
        expected = as_latex(expected)
        answer = as_latex(answer, listed=", " in expected)
        if "=" not in expected:
            answer = last_side(answer)
        if words_in(answer) or not answer:
            return "unreadable"
        if len(units) > 1:
            return "wrong"
        if PARTLY_READ.search(expected) or PARTLY_READ.search(answer):
            return "right" if tokens(expected) == tokens(answer) else "wrong"
        return self._ask({"expected": expected, "answer": answer})

    def unreadable(self, references: Iterable[str]) -> str | None:
        """The first reference that cannot be read as mathematics; None if all can."""
        for reference in references:
            latex = "" if too_large(reference) else as_latex(reference)
            fault = words_in(latex) or not latex
            if fault or (not PARTLY_READ.search(latex) and self._ask({"expected": latex, "answer": latex}) != "right"):
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
            [sys.executable, "-I", "-B", symbolic.__file__, str(self.seconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
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
