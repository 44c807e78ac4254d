"""The child process that compares answers: reads questions, one JSON object a line, and writes one reply for each.

plumbline/checking/algebra.py starts it and says what it is for. It runs alone and imports nothing from the project.
"""

import json
import os
import sys
from typing import Any

MEMORY_MIB = 2048  # address space


def serve(seconds: float) -> None:
    """Answers questions, one a line; a question that takes more processor time than `seconds` ends the process with SIGPROF."""
    import logging
    import resource
    import signal

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
    from sympy import Basic, Eq, Float, MatrixBase, Rational, evaluate

    normalization = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    latex = [LatexExtractionConfig(boxed_match_priority=-1, normalization_config=normalization)]

    def read(text: str) -> Any:
        candidates = parse(f"${text}$", latex, parsing_timeout=None)
        if not candidates or not isinstance(candidates[0], (Basic, MatrixBase)):
            return None
        exact = {number: Rational(str(number)) for number in candidates[0].atoms(Float)}
        with evaluate(not candidates[0].has(Eq)):  # `1/2 = 0.5` must not become true
            return candidates[0].xreplace(exact)

    gold, target = read(expected), read(answer)
    if gold is None or target is None:
        return "unreadable"
    # the order of the arguments matters: the reference decides how an equation is read
    equal = verify(gold, target, numeric_precision=50, allow_set_relation_comp=True, timeout_seconds=None)
    return "right" if equal else "wrong"


if __name__ == "__main__":
    serve(float(sys.argv[1]))
