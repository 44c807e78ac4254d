"""Converters of rows without a preference: instructions and their answers, conversations, maths and code, prompts, plain text."""

import re

from plumbline.data.faults import RowFault
from plumbline.data.fields import (
    RawRow,
    Record,
    completion_of,
    listing,
    messages,
    prompt_of,
    system_turn,
    text,
    user,
    wrong_type,
)
from plumbline.data.schema import Source
from plumbline.rows import Message, assistant

PROMPT_RESPONSE = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("input", "output"),
    ("goal", "target"),
    ("Q", "A"),
)
PROMPT_ONLY = ("prompt", "instruction", "question", "query", "turns", "goal")

_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
_FINAL_NUMBER = re.compile(r"-?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")


# --------------------------------------------------------------------------------------------------------- instructions


def instruction_prompt(row: RawRow) -> list[Message]:
    """Alpaca's prompt: the system turn and the earlier turns (`history`, pairs) if there are any; the input after a blank line."""
    context = row.get("input", row.get("context"))
    if context is not None and not isinstance(context, str):
        raise wrong_type("input", "a string", context)
    question = text(row, "instruction") + (f"\n\n{context}" if context and context.strip() else "")
    earlier: list[Message] = []
    for pair in listing(row, "history") if row.get("history") is not None else ():
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(turn, str) for turn in pair)):
            raise wrong_type("history", "pairs of strings", pair)
        earlier += [*user(pair[0]), *assistant(pair[1])]
    return [*system_turn(row), *earlier, *user(question)]


def alpaca(row: RawRow, source: Source) -> Record:
    """Alpaca's and Dolly's rows; of several unranked outputs none can be used, so only the prompt is."""
    key = "output" if "output" in row else "response"
    prompt = instruction_prompt(row)
    if isinstance(row.get(key), list):
        return Record("prompt", {"prompt": prompt})
    return Record("instruction", {"prompt": prompt, "completion": assistant(text(row, key))})


def prompt_response(row: RawRow, source: Source) -> Record:
    """A pair of fields of PROMPT_RESPONSE."""
    key, reply = next((pair for pair in PROMPT_RESPONSE if pair[0] in row and pair[1] in row), PROMPT_RESPONSE[0])
    prompt = instruction_prompt(row) if key == "instruction" else prompt_of(row, key)
    return Record("instruction", {"prompt": prompt, "completion": completion_of(row, reply)})


def conversation(row: RawRow, source: Source) -> Record:
    """Messages, after the row's system turn."""
    key = next((key for key in ("messages", "conversations", "conversation") if key in row), "messages")
    turns = messages(row.get(key) if row.get(key) is not None else listing(row, key), key)
    return Record("conversation", {"messages": [*system_turn(row), *turns]})


# ------------------------------------------------------------------------------------------------------- maths and code


def gsm8k(row: RawRow, source: Source) -> Record:
    """GSM8K without its calculator marks (<<1+2=3>>); the final number loses its thousands commas and is also kept as `answer`."""
    steps, mark, final = text(row, "answer").rpartition("####")
    final = final.strip()
    if not mark or not _FINAL_NUMBER.fullmatch(final):
        raise RowFault("missing_field", f"expected '#### <number>' at the end of the answer, found {text(row, 'answer')[-40:]!r}")
    answer = final.replace(",", "").replace("$", "")
    completion = f"{_CALCULATOR_MARK.sub('', steps).rstrip()}\n#### {answer}"
    columns = {"prompt": user(text(row, "question")), "completion": assistant(completion)}
    return Record("instruction", columns, {"answer": answer})


def mbpp(row: RawRow, source: Source) -> Record:
    """MBPP: the prompt is the task with its tests, as in arXiv:2108.07732; Windows line ends become newlines."""
    tests = listing(row, "test_list")
    if not all(isinstance(test, str) for test in tests):
        raise RowFault("wrong_type", f"test_list: expected strings, found {str(tests)[:40]}")
    prompt = f"{text(row, 'text' if 'text' in row else 'prompt')}\nYour code should pass these tests:\n" + "\n".join(tests)
    setup = row.get("test_setup_code") or row.get("test_imports") or ""
    extra = {"tests": [*([setup] if isinstance(setup, str) and setup else []), *tests]}
    columns = {"prompt": user(_newlines(prompt)), "completion": assistant(_newlines(text(row, "code")))}
    return Record("instruction", columns, extra)


def humaneval(row: RawRow, source: Source) -> Record:
    """HumanEval: the prompt is the function's signature, the completion the whole function."""
    signature, body = text(row, "prompt"), text(row, "canonical_solution")
    tests = [text(row, "test"), f"check({text(row, 'entry_point')})"]
    prompt = user(f"Complete this Python function.\n\n{signature}")
    return Record("instruction", {"prompt": prompt, "completion": assistant(signature + body)}, {"tests": tests})


def _newlines(value: str) -> str:
    return value.replace("\r\n", "\n")


# ----------------------------------------------------------------------------------------------------- prompts and text


def prompt_only(row: RawRow, source: Source) -> Record:
    """A prompt, with its family if the row has one."""
    key = next((key for key in PROMPT_ONLY if row.get(key) is not None), PROMPT_ONLY[0])
    family = next((str(row[key]) for key in ("family", "category", "type") if isinstance(row.get(key), str)), None)
    prompt = instruction_prompt(row) if key == "instruction" else prompt_of(row, key)
    return Record("prompt", {"prompt": prompt}, {"family": family} if family else {})


def plain_text(row: RawRow, source: Source) -> Record:
    """Text to read in pretraining."""
    return Record("text", {"text": text(row, "text" if "text" in row else "content")})
