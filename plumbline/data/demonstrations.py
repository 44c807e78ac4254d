"""Converters of rows without a preference: instructions and their answers, conversations, maths and code, prompts, plain text."""

import re

from plumbline.data.faults import RowFault
from plumbline.data.fields import RawRow, Record, listing, messages, text
from plumbline.data.questions import QUESTIONS, completion_of, prompt_of, system_turn
from plumbline.data.schema import Source
from plumbline.rows import assistant

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
PROMPT_ONLY = tuple(key for key in QUESTIONS if key not in ("conversations", "input", "Q"))

CONVERSATIONS = ("messages", "conversations", "conversation")

_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
_FINAL_NUMBER = re.compile(r"-?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")


# --------------------------------------------------------------------------------------------------------- instructions


def alpaca(row: RawRow, source: Source) -> Record:
    """Alpaca's and Dolly's rows; of several unranked outputs none can be used, so only the prompt is."""
    key = "output" if "output" in row else "response"
    prompt = prompt_of(row, "instruction")
    if isinstance(row.get(key), list):
        return Record("prompt", {"prompt": prompt})
    return Record("instruction", {"prompt": prompt, "completion": completion_of(row, key)})


def prompt_response(row: RawRow, source: Source) -> Record:
    """A pair of fields of PROMPT_RESPONSE."""
    key, reply = next((pair for pair in PROMPT_RESPONSE if pair[0] in row and pair[1] in row), PROMPT_RESPONSE[0])
    return Record("instruction", {"prompt": prompt_of(row, key), "completion": completion_of(row, reply)})


def conversation(row: RawRow, source: Source) -> Record:
    """Messages, after the row's system turn."""
    key = next((key for key in CONVERSATIONS if key in row), "messages")
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
    columns = {"prompt": prompt_of(row, "question"), "completion": assistant(completion)}
    return Record("instruction", columns, {"answer": answer})


def mbpp(row: RawRow, source: Source) -> Record:
    """MBPP: the prompt is the task with its tests, as in arXiv:2108.07732; Windows line ends become newlines."""
    tests = listing(row, "test_list")
    if not all(isinstance(test, str) for test in tests):
        raise RowFault("wrong_type", f"test_list: expected strings, found {str(tests)[:40]}")
    task = f"{text(row, 'text' if 'text' in row else 'prompt')}\nYour code should pass these tests:\n" + "\n".join(tests)
    setup = row.get("test_setup_code") or row.get("test_imports") or ""
    extra = {"tests": [*([setup] if isinstance(setup, str) and setup else []), *tests]}
    prompt = prompt_of(row, "prompt", _newlines(task))
    columns = {"prompt": prompt, "completion": assistant(_newlines(text(row, "code")))}
    return Record("instruction", columns, extra)


def humaneval(row: RawRow, source: Source) -> Record:
    """HumanEval: the prompt is the function's signature, the completion the whole function."""
    signature, body = text(row, "prompt"), text(row, "canonical_solution")
    tests = [text(row, "test"), f"check({text(row, 'entry_point')})"]
    prompt = prompt_of(row, "prompt", f"Complete this Python function.\n\n{signature}")
    return Record("instruction", {"prompt": prompt, "completion": assistant(signature + body)}, {"tests": tests})


def _newlines(value: str) -> str:
    return value.replace("\r\n", "\n")


# ----------------------------------------------------------------------------------------------------- prompts and text


def prompt_only(row: RawRow, source: Source) -> Record:
    """A prompt, with its family if the row has one."""
    key = next((key for key in PROMPT_ONLY if row.get(key) is not None), PROMPT_ONLY[0])
    family = next((str(row[key]) for key in ("family", "category", "type") if isinstance(row.get(key), str)), None)
    return Record("prompt", {"prompt": prompt_of(row, key)}, {"family": family} if family else {})


def ifeval(row: RawRow, source: Source) -> Record:
    """IFEval's prompts, each with what its answer is checked for."""
    names, arguments = listing(row, "instruction_id_list"), listing(row, "kwargs")
    if len(names) != len(arguments):
        raise RowFault("bad_instruction", f"expected as many kwargs as instructions, found {len(arguments)} and {len(names)}")
    instructions = [{**(values or {}), "id": name} for name, values in zip(names, arguments, strict=True)]
    return Record("prompt", {"prompt": prompt_of(row, "prompt")}, {"instructions": instructions})


def plain_text(row: RawRow, source: Source) -> Record:
    """Text to read in pretraining."""
    return Record("text", {"text": text(row, "text" if "text" in row else "content")})
