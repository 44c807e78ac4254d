"""Finds the program in a completion: the code blocks that define what the tests call, with the blocks that these need.

Markdown is read as CommonMark has it: blocks in list items and quotations are dedented, `~~~` is a fence, a fence that is not closed reaches the end.
If nothing in it defines what the tests call, fences are looked for without Markdown's rules. Without tests, or if that fails too, the program is the
last block of Python, or else the last block without a language. Without any such block it is the whole answer.
"""

import builtins
import re
import symtable
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from markdown_it import MarkdownIt

from plumbline.reasoning import ALL, answer_block, without_reasoning

_PYTHON = {"python", "py", "python2", "python3", "ipython"}
_MARKDOWN = MarkdownIt("commonmark").disable(["html_block", "html_inline"])  # a fence counts inside HTML too
_FENCE = re.compile(r"(?<![`~])(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^\n`]{0,100})\n(?P<code>.*?)(?:(?P=fence)|\Z)", re.DOTALL)
_BUILTINS = frozenset(dir(builtins))


class Names(NamedTuple):
    """The names of a piece of code."""

    defined: frozenset[str]  # at its top level
    imported: frozenset[str]  # there, and not defined
    used: frozenset[str]  # of those that it does not define itself


def program_of(completion: str, tests: str = "", reasoning: str = ALL) -> str:
    """The program in a completion, for tests such as `assert f(1) == 2`.

    reasoning: which marks set reasoning apart, by plumbline/reasoning.py; a program inside it is not an answer.
    """
    answer = without_reasoning(completion, reasoning)
    block = answer_block(answer)
    if block is not None and (_fences(block) or not _fences(answer)):
        answer = block
    needed = names_of(tests).used
    needed = needed - _BUILTINS or needed
    last = None
    for fences in (_fences, _loose_fences):
        blocks = [(_language(info), code.replace("\ufeff", "")) for info, code in fences(answer)]
        python = [code for language, code in blocks if language in _PYTHON]
        candidates = [code for language, code in blocks if language in _PYTHON or not language]
        if defining := _last_definitions(candidates, needed):
            return "\n".join(candidates[index].rstrip("\n") for index in sorted(_with_what_they_need(candidates, defining)))
        if candidates and last is None:
            last = (python or candidates)[-1]
    return answer if last is None else last


def _language(info: str) -> str:
    """The language in the info string of a fence: `python`, `Python:main.py`, `{.python .numberLines}`."""
    words = re.findall(r"[^\s{}.:,]+", info.lower())
    return words[0] if words else ""


def _fences(text: str) -> list[tuple[str, str]]:
    """The info string and the content of each fenced block of Markdown."""
    return [(token.info, token.content) for token in _MARKDOWN.parse(text) if token.type == "fence"]


def _loose_fences(text: str) -> list[tuple[str, str]]:
    """The same without Markdown's rules: a fence may stand behind text or deeper than what encloses it, and its code less deep than it does."""
    text = text.replace("\r\n", "\n")
    return [(match["info"], textwrap.dedent(match["code"])) for match in _FENCE.finditer(text)]


def _last_definitions(blocks: Sequence[str], names: Iterable[str]) -> set[int]:
    """The blocks that define these names: for each name, the last one that does, or else the last one that imports it."""
    chosen = set()
    for name in names:
        defining = [index for index, code in enumerate(blocks) if name in names_of(code).defined]
        importing = [index for index, code in enumerate(blocks) if name in names_of(code).imported]
        chosen.update((defining or importing)[-1:])
    return chosen


def _with_what_they_need(blocks: Sequence[str], chosen: set[int]) -> set[int]:
    """These blocks and those that define the names that they use."""
    while True:
        missing = {name for index in chosen for name in names_of(blocks[index]).used}
        missing -= _BUILTINS.union(*(names_of(blocks[index]).defined | names_of(blocks[index]).imported for index in chosen))
        further = _last_definitions(blocks, missing) - chosen
        if not further:
            return chosen
        chosen = chosen | further


@lru_cache(1024)
def names_of(code: str) -> Names:
    """The names that a piece of code defines and uses; none if it is not Python."""
    try:
        with warnings.catch_warnings(action="ignore"):
            module = symtable.symtable(code, "", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Names(frozenset(), frozenset(), frozenset())
    defined = {symbol.get_name() for symbol in module.get_symbols() if symbol.is_assigned()}
    imported = {symbol.get_name() for symbol in module.get_symbols() if symbol.is_imported()} - defined
    used, waiting = set[str](), [module]
    while waiting:
        scope = waiting.pop()
        waiting += scope.get_children()
        symbols = (symbol for symbol in scope.get_symbols() if symbol.is_referenced() or symbol.is_declared_global())
        used.update(symbol.get_name() for symbol in symbols if scope is module or symbol.is_global())
    return Names(frozenset(defined), frozenset(imported), frozenset(used - defined - imported))
