"""Public data formats, turned into TRL's conversational columns.

Each format is a predicate (does a row look like it?) and a converter that returns a `Record`: one of a few kinds of content, in
messages. What a row lacks or has wrong is raised as `RowFault`, counted by the caller. Nothing is altered beyond what a format's
entry in `FORMATS` says. A format of your own needs no code: `format: fields` with a mapping in conf/data/<name>.yaml.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from stages.datasets.config import Source
from stages.datasets.reading import DataError, Fault

Message = dict[str, str]
Row = Mapping[str, Any]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
}
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
PROVENANCE = ("source", "file", "row", "licence")  # told anew of every row
PROMPT_ONLY = ("prompt", "instruction", "question", "query", "turns", "goal")


class RowFault(ValueError):
    """A row that its format cannot use; `fault` says why."""

    def __init__(self, reason: str, found: str) -> None:
        super().__init__(f"{reason}: {found}")
        self.fault = Fault(reason, found)


class Record(NamedTuple):
    """What a row holds: `kind` is conversation, instruction, preference, unpaired, ranked, prompt or text."""

    kind: str
    columns: dict[str, Any]
    extra: Mapping[str, Any] = MappingProxyType({})


class Format(NamedTuple):
    """How to recognise and convert one format."""

    fits: Callable[[Row], bool]
    convert: Callable[[Row, Source], Record]
    what: str


# ---------------------------------------------------------------------------------------------------------- fields


def text(row: Row, key: str) -> str:
    """A string field; RowFault if it is missing, null or of another type."""
    value = row.get(key)
    if value is None:
        raise RowFault(
            "missing_field", f"{key!r} is {'null' if key in row else 'missing'}; there are {sorted(map(str, row))[:8]}"
        )
    if not isinstance(value, str):
        raise RowFault("wrong_type", f"{key!r}: expected a string, found {type(value).__name__} {str(value)[:40]}")
    return value


def listing(row: Row, key: str) -> Sequence[Any]:
    """A list field; RowFault if it is missing, null or of another type."""
    value = row.get(key)
    if value is None:
        raise RowFault(
            "missing_field", f"{key!r} is {'null' if key in row else 'missing'}; there are {sorted(map(str, row))[:8]}"
        )
    if not isinstance(value, list):
        raise RowFault("wrong_type", f"{key!r}: expected a list, found {type(value).__name__} {str(value)[:40]}")
    return value


def number(value: Any, key: str) -> float:
    """A finite number, also where a CSV has it as text; RowFault otherwise."""
    try:
        if not isinstance(value, bool) and isinstance(value, (int, float, str)) and math.isfinite(float(value)):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise RowFault("wrong_type", f"{key!r}: expected a number, found {type(value).__name__} {str(value)[:40]}")


def message(value: Any) -> Message:
    """A message of any usual spelling (role/content, from/value) as {"role", "content"}."""
    if not isinstance(value, Mapping):
        raise RowFault("wrong_type", f"expected a message with role and content, found {type(value).__name__} {str(value)[:40]}")
    role = value.get("role", value.get("from"))
    content = value.get("content", value.get("value"))
    if role is None or content is None:
        raise RowFault(
            "missing_field", f"a message without {'role' if role is None else 'content'}: {sorted(map(str, value))[:8]}"
        )
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise RowFault("unknown_role", f"{str(role)[:40]!r}; known: {', '.join(ROLES)}")
    if value.get("tool_calls") or value.get("function_call"):
        raise RowFault("wrong_type", "a message that calls a tool: there is no text for that in a chat template here")
    if isinstance(content, list):  # OpenAI's parts
        content = "".join(_part(part) for part in content)
    if not isinstance(content, str):
        raise RowFault("wrong_type", f"content: expected a string, found {type(content).__name__} {str(content)[:40]}")
    return {"role": ROLES[role.lower()], "content": content}


def _part(part: Any) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise RowFault("wrong_type", f"content: expected parts of type text, found {str(kind)[:40]}")


def messages(value: Any, key: str) -> list[Message]:
    """A conversation; RowFault unless it is a list of messages."""
    if isinstance(value, Mapping):  # a single message
        return [message(value)]
    if not isinstance(value, list):
        raise RowFault("wrong_type", f"{key!r}: expected a list of messages, found {type(value).__name__} {str(value)[:40]}")
    return [message(item) for item in value]


def asked(content: str) -> list[Message]:
    """A prompt of one user turn."""
    return [{"role": "user", "content": content}]


def said(content: str) -> list[Message]:
    """A completion."""
    return [{"role": "assistant", "content": content}]


def _system(row: Row) -> list[Message]:
    """The system turn that a row has beside its prompt, if it is not empty."""
    key = next((key for key in ("system", "system_prompt") if row.get(key) is not None), None)
    said_before = text(row, key) if key else ""
    return [{"role": "system", "content": said_before}] if said_before.strip() else []


def _prompt_of(row: Row, key: str) -> list[Message]:
    value = row.get(key)
    if key == "turns" and isinstance(value, list) and value and isinstance(value[0], str):
        return [*_system(row), *asked(value[0])]  # MT-Bench's turns: the first is what is asked
    return [*_system(row), *(messages(value, key) if isinstance(value, (list, Mapping)) else asked(text(row, key)))]


def _reply_of(row: Row, key: str) -> list[Message]:
    value = row.get(key)
    return messages(value, key) if isinstance(value, (list, Mapping)) else said(text(row, key))


# ----------------------------------------------------------------------------------------------------- demonstrations


def _instruction(row: Row) -> list[Message]:
    """Alpaca's prompt: the system turn and the earlier turns (`history`, pairs) if there are any; the input after a blank line."""
    context = row.get("input", row.get("context"))
    if context is not None and not isinstance(context, str):
        raise RowFault("wrong_type", f"input: expected a string, found {type(context).__name__} {str(context)[:40]}")
    prompt = text(row, "instruction") + (f"\n\n{context}" if context and context.strip() else "")
    earlier: list[Message] = []
    for pair in listing(row, "history") if row.get("history") is not None else ():
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(said_before, str) for said_before in pair)):
            raise RowFault("wrong_type", f"history: expected pairs of strings, found {type(pair).__name__} {str(pair)[:40]}")
        earlier += [*asked(pair[0]), *said(pair[1])]
    return [*_system(row), *earlier, *asked(prompt)]


def _alpaca(row: Row, source: Source) -> Record:
    reply = "output" if "output" in row else "response"
    prompt = _instruction(row)
    if isinstance(row.get(reply), list):  # several unranked samples: only the prompt is usable
        return Record("prompt", {"prompt": prompt})
    return Record("instruction", {"prompt": prompt, "completion": said(text(row, reply))})


def _pair(row: Row, source: Source) -> Record:
    key, reply = next((pair for pair in PROMPT_RESPONSE if pair[0] in row and pair[1] in row), PROMPT_RESPONSE[0])
    prompt = _instruction(row) if key == "instruction" else _prompt_of(row, key)
    return Record("instruction", {"prompt": prompt, "completion": _reply_of(row, reply)})


def _conversation(row: Row, source: Source) -> Record:
    key = next((key for key in ("messages", "conversations", "conversation") if key in row), "messages")
    turns = messages(row.get(key) if row.get(key) is not None else listing(row, key), key)
    return Record("conversation", {"messages": [*_system(row), *turns]})


def _text_only(row: Row, source: Source) -> Record:
    return Record("text", {"text": text(row, "text" if "text" in row else "content")})


# -------------------------------------------------------------------------------------------------------- preferences


def _preference(row: Row, source: Source) -> Record:
    """Prompt, chosen and rejected as strings or messages; answers that repeat the prompt (Tülu's, UltraFeedback's) lose it."""
    chosen, rejected = _reply_of(row, "chosen"), _reply_of(row, "rejected")
    key = next((key for key in ("conversations", "prompt", "question", "instruction", "input") if row.get(key) is not None), None)
    prompt = _prompt_of(row, key) if key else []
    if len(chosen) > 1 or len(rejected) > 1 or not prompt:
        prompt = _whole_prompt(_same_prompt(chosen[:-1], rejected[:-1], prompt), prompt)
    extra = {key: row[key] for key in ("score_chosen", "score_rejected") if isinstance(row.get(key), (int, float))}
    return Record("preference", {"prompt": prompt, "chosen": chosen[-1:], "rejected": rejected[-1:]}, extra)


def _same_prompt(chosen: list[Message], rejected: list[Message], prompt: list[Message]) -> list[Message]:
    if chosen != rejected:
        turn = next((i for i, pair in enumerate(zip(chosen, rejected, strict=False)) if pair[0] != pair[1]), -1)
        raise RowFault("prompts_differ", f"{len(chosen)} turns before chosen, {len(rejected)} before rejected; differ at {turn}")
    if not chosen and not prompt:
        raise RowFault("no_prompt", "chosen and rejected have one turn each and there is no prompt")
    return chosen or prompt


def _whole_prompt(before: list[Message], stated: list[Message]) -> list[Message]:
    """The turns before the answers, with the system turn that only the stated prompt has; RowFault if the two contradict."""
    head = [turn for turn in stated[:1] if turn["role"] == "system" and turn not in before]
    if all(turn in before for turn in stated[len(head) :]):
        return [*head, *before]
    raise RowFault("prompts_differ", f"the prompt is not what chosen answers: {stated[-1]['content'][:40]!r}")


_TURN = re.compile(r"\n\n(Human|Assistant): ?")


def transcript(value: str) -> list[Message]:
    """An HH-RLHF transcript as messages; the whitespace around turns is the format's, not the speakers'."""
    parts = _TURN.split(value if value.startswith("\n\n") else f"\n\n{value.lstrip()}")
    if parts[0].strip() or len(parts) < 3:
        raise RowFault("wrong_type", f"expected a transcript that starts with Human: or Assistant:, found {value[:40]!r}")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": what.strip()} for who, what in zip(parts[1::2], parts[2::2], strict=True)]


def _hh(row: Row, source: Source) -> Record:
    chosen, rejected = transcript(text(row, "chosen")), transcript(text(row, "rejected"))
    prompt = _same_prompt(chosen[:-1], rejected[:-1], [])
    return Record("preference", {"prompt": prompt, "chosen": chosen[-1:], "rejected": rejected[-1:]})


def _ultrafeedback(row: Row, source: Source) -> Record:
    """The original, with up to four scored completions; best and worst by `overall_score` become the pair."""
    replies = listing(row, "completions")
    key = next((key for key in ("instruction", "prompt", "question") if key in row), "prompt")
    scored = [(_score(reply), _reply_text(reply)) for reply in replies]
    return _ranked(_prompt_of(row, key), scored)


def _score(reply: Any) -> float:
    if not isinstance(reply, Mapping):
        raise RowFault(
            "wrong_type", f"completions: expected objects with a score, found {type(reply).__name__} {str(reply)[:40]}"
        )
    key = next((key for key in ("overall_score", "score", "fine-grained_score", "reward") if reply.get(key) is not None), None)
    if key is None:
        raise RowFault("missing_field", f"a completion without score or overall_score; there are {sorted(map(str, reply))[:8]}")
    return number(reply[key], key)


def _reply_text(reply: Row) -> str:
    return text(reply, next((key for key in ("response", "text", "completion", "content") if key in reply), "response"))


def _scored(row: Row, source: Source) -> Record:
    replies, scores = listing(row, "completions"), listing(row, "scores")
    if len(replies) != len(scores):
        raise RowFault("wrong_type", f"{len(replies)} completions and {len(scores)} scores")
    values = [number(score, "scores") for score in scores]
    return _ranked(_prompt_of(row, "prompt"), list(zip(values, (_string(reply) for reply in replies), strict=True)))


def _ranked_list(row: Row, source: Source) -> Record:
    """Completions from best to worst."""
    key = next((key for key in ("ranked", "ranking", "responses", "completions") if key in row), "ranked")
    replies = listing(row, key)
    return _ranked(_prompt_of(row, "prompt"), [(-float(rank), _string(reply)) for rank, reply in enumerate(replies)])


def _string(value: Any) -> str:
    if isinstance(value, str):
        return value
    return (
        message(value)["content"] if isinstance(value, Mapping) and "role" in value else text({"completion": value}, "completion")
    )


def _ranked(prompt: list[Message], scored: list[tuple[float, str]]) -> Record:
    if len(scored) < 2:
        raise RowFault("no_preference", f"{len(scored)} completion: two are needed for a preference")
    best, worst = max(scored, key=lambda pair: pair[0]), min(scored, key=lambda pair: pair[0])
    if best[0] == worst[0]:
        raise RowFault("no_preference", f"all {len(scored)} completions have the score {best[0]:g}")
    pair = {"prompt": prompt, "chosen": said(best[1]), "rejected": said(worst[1])}
    return Record("preference", pair, {"score_chosen": best[0], "score_rejected": worst[0]})


def _comparison(row: Row, source: Source) -> Record:
    """Two outputs and which is better: 1 or 2 (LLMBar), a number between them (AlpacaEval), 0 or 1.5 a tie."""
    verdict = "label" if "label" in row else "preference"
    prompt = _instruction(row) if "instruction" in row else _prompt_of(row, "input")
    return _verdict(prompt, text(row, "output_1"), text(row, "output_2"), [row.get(verdict)], source)


def _verdict(prompt: list[Message], first: str, second: str, votes: Sequence[Any], source: Source) -> Record:
    counted = Counter(_vote(vote, source) for vote in votes)
    if counted[1] == counted[2]:
        found = ", ".join(repr(vote) if vote not in ("", None) else "empty" for vote in votes)
        raise RowFault("no_preference", f"verdict {found[:60]}")
    better, worse = (first, second) if counted[1] > counted[2] else (second, first)
    return Record("preference", {"prompt": prompt, "chosen": said(better), "rejected": said(worse)})


def _vote(vote: Any, source: Source) -> int:
    """1 or 2 for the better one, 0 for a tie or no verdict."""
    name = str(vote).strip()
    if source.positive or source.negative:
        return 1 if name in source.positive else 2 if name in source.negative else 0
    try:
        value = float(name)
    except ValueError:
        return 0
    return 1 if 0.5 < value < 1.5 else 2 if 1.5 < value < 2.5 else 0


# ------------------------------------------------------------------------------------------------------ unpaired labels


def _kto(row: Row, source: Source) -> Record:
    label = _label(row.get("label", row.get("kto_tag")), source)
    if "messages" in row or "conversations" in row:
        turns = _conversation(row, source).columns["messages"]
        return Record("unpaired", {"prompt": turns[:-1], "completion": turns[-1:], "label": label})
    return Record("unpaired", {"prompt": _prompt_of(row, "prompt"), "completion": _reply_of(row, "completion"), "label": label})


def _label(value: Any, source: Source) -> bool:
    name = str(value).strip()
    if source.positive or source.negative:
        if name in source.positive or name in source.negative:
            return name in source.positive
    elif name.lower() in ("true", "1", "1.0"):
        return True
    elif name.lower() in ("false", "0", "0.0"):
        return False
    if value is None or name == "":
        raise RowFault("no_preference", "no label")
    raise RowFault("wrong_type", f"label: expected true or false, or a value of `positive` or `negative`, found {name[:40]!r}")


# --------------------------------------------------------------------------------------------------------- maths and code

_CALCULATOR = re.compile(r"<<[^<>]*>>")
_ANSWER = re.compile(r"-?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")


def _gsm8k(row: Row, source: Source) -> Record:
    """Calculator marks (<<1+2=3>>) go; the final number loses its thousands commas and is kept as `answer`, too."""
    steps, mark, final = text(row, "answer").rpartition("####")
    final = final.strip()
    if not mark or not _ANSWER.fullmatch(final):
        raise RowFault("missing_field", f"expected '#### <number>' at the end of the answer, found {text(row, 'answer')[-40:]!r}")
    answer = final.replace(",", "").replace("$", "")
    completion = f"{_CALCULATOR.sub('', steps).rstrip()}\n#### {answer}"
    return Record("instruction", {"prompt": asked(text(row, "question")), "completion": said(completion)}, {"answer": answer})


def _mbpp(row: Row, source: Source) -> Record:
    """The task and its tests are asked (as in arXiv:2108.07732); Windows line ends become newlines."""
    tests = listing(row, "test_list")
    if not all(isinstance(test, str) for test in tests):
        raise RowFault("wrong_type", f"test_list: expected strings, found {str(tests)[:40]}")
    prompt = f"{text(row, 'text' if 'text' in row else 'prompt')}\nYour code should pass these tests:\n" + "\n".join(tests)
    setup = row.get("test_setup_code") or row.get("test_imports") or ""
    extra = {"tests": [*([setup] if isinstance(setup, str) and setup else []), *tests]}
    return Record("instruction", {"prompt": asked(_newlines(prompt)), "completion": said(_newlines(text(row, "code")))}, extra)


def _humaneval(row: Row, source: Source) -> Record:
    """The signature is asked for; the answer is the whole function."""
    prompt, body = text(row, "prompt"), text(row, "canonical_solution")
    tests = [text(row, "test"), f"check({text(row, 'entry_point')})"]
    question = f"Complete this Python function.\n\n{prompt}"
    return Record("instruction", {"prompt": asked(question), "completion": said(prompt + body)}, {"tests": tests})


def _newlines(value: str) -> str:
    return value.replace("\r\n", "\n")


# ------------------------------------------------------------------------------------------------------------- the rest


def _prompt_only(row: Row, source: Source) -> Record:
    key = next((key for key in PROMPT_ONLY if row.get(key) is not None), PROMPT_ONLY[0])
    family = next((str(row[key]) for key in ("family", "category", "type") if isinstance(row.get(key), str)), None)
    prompt = _instruction(row) if key == "instruction" else _prompt_of(row, key)
    return Record("prompt", {"prompt": prompt}, {"family": family} if family else {})


def _plumbline(row: Row, source: Source) -> Record:
    """Rows as this project writes them: all columns are kept as they are."""
    names = {
        "preference": ("prompt", "chosen", "rejected"),
        "unpaired": ("prompt", "completion", "label"),
        "instruction": ("prompt", "completion"),
        "prompt": ("prompt",),
        "conversation": ("messages",),
        "text": ("text",),
    }
    kind = next((kind for kind, columns in names.items() if all(column in row for column in columns)), None)
    if kind is None:
        raise RowFault("missing_field", f"expected columns of one of {', '.join(names)}, found {sorted(map(str, row))[:8]}")
    plain = {"text": lambda: text(row, "text"), "label": lambda: _label(row["label"], source)}
    columns = {column: plain[column]() if column in plain else messages(row[column], column) for column in names[kind]}
    extra = {key: value for key, value in row.items() if key not in columns and key not in PROVENANCE}
    return Record(kind, columns, extra)


def _is_plumbline(row: Row) -> bool:
    """Messages under `prompt`, with nothing to be split off the answers."""
    return all(
        isinstance(row.get(column, []), list) and all(isinstance(item, dict) and "role" in item for item in row.get(column, []))
        for column in ("prompt", "completion", "chosen", "rejected")
    ) and (bool(row.get("prompt")) and ("chosen" not in row or len(row["chosen"]) == 1))


def mapped(row: Row, source: Source) -> Record:
    """Your own format: `fields` maps our columns to your fields: a name, dotted into nested ones, or a template with {field}.

    A template loses the white space at its ends, which is left where a field at its end is empty.
    """
    found = {column: _lookup(row, path, column) for column, path in source.fields.items()}
    extra = {key: found[key] for key in ("id", "family", "language", "answer", "tests") if found.get(key) is not None}
    # From here on the system turn is part of the prompt.
    prompt = _prompt_of({"prompt": found["prompt"], "system": found.pop("system", None)}, "prompt") if "prompt" in found else []
    if "preferred" in found:
        votes = [_lookup(row, path.strip(), "preferred") for path in source.fields["preferred"].split(",")]
        first, second = text(found, "first"), text(found, "second")
        return _verdict(prompt, first, second, votes, source)._replace(extra=extra)
    if "chosen" in found:
        return _preference({**found, "prompt": prompt}, source)._replace(extra=extra)
    if "completions" in found:
        return (_scored if "scores" in found else _ranked_list)({**found, "prompt": prompt}, source)._replace(extra=extra)
    if "label" in found:
        reply = _reply_of(found, "completion")
        return Record("unpaired", {"prompt": prompt, "completion": reply, "label": _label(found["label"], source)}, extra)
    if "completion" in found:
        return Record("instruction", {"prompt": prompt, "completion": _reply_of(found, "completion")}, extra)
    if "messages" in found:
        return _conversation(found, source)._replace(extra=extra)
    if "text" in found:
        return Record("text", {"text": text(found, "text")}, extra)
    return Record("prompt", {"prompt": prompt}, extra)


MAPPABLE = (
    *("prompt", "system", "completion", "chosen", "rejected", "first", "second", "preferred", "completions", "scores", "label"),
    *("messages", "text", "id", "family", "language", "answer", "tests"),
)


def _lookup(row: Row, path: str, column: str) -> Any:
    if "{" in path:
        return re.sub(r"\{([^{}]*)\}", lambda match: text({path: _lookup(row, match[1], column)}, path), path).strip()
    if column == "preferred" and "," in path:
        return None  # several votes, looked up one by one
    value: Any = row
    for step in path.split("."):
        if isinstance(value, list) and step.lstrip("-").isdigit() and -len(value) <= int(step) < len(value):
            value = value[int(step)]
        elif isinstance(value, Mapping) and step in value:
            value = value[step]
        elif path in row:  # a field whose name has a dot
            return row[path]
        else:
            raise RowFault("missing_field", f"{column}: {path!r} not found; there are {sorted(map(str, row))[:8]}")
    return value


def _has(*keys: str) -> Callable[[Row], bool]:
    return lambda row: all(key in row for key in keys)


def _hh_fits(row: Row) -> bool:
    return all(
        isinstance(row.get(key), str) and row[key].lstrip().startswith(("Human:", "Assistant:")) for key in ("chosen", "rejected")
    )


def _objects(row: Row, key: str) -> bool:
    value = row.get(key)
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


# In the order of detection: the first that fits.
FORMATS: dict[str, Format] = {
    "plumbline": Format(_is_plumbline, _plumbline, "this project's own: prompt, completion, chosen, rejected as messages"),
    "hh": Format(_hh_fits, _hh, "HH-RLHF transcripts; the last assistant turn is split off, rows whose prompts differ refused"),
    "preference": Format(_has("chosen", "rejected"), _preference, "prompt, chosen, rejected as strings or messages"),
    "comparison": Format(_has("output_1", "output_2"), _comparison, "output_1, output_2 and label or preference (1, 2, tie)"),
    "ultrafeedback": Format(
        lambda row: _objects(row, "completions") and "scores" not in row,
        _ultrafeedback,
        "completions with overall_score; best against worst",
    ),
    "scored": Format(_has("prompt", "completions", "scores"), _scored, "prompt, completions, scores; best against worst"),
    "ranked": Format(
        lambda row: "prompt" in row and any(key in row for key in ("ranked", "ranking")),
        _ranked_list,
        "prompt and `ranked` (or ranking, responses, completions) from best to worst; best against worst",
    ),
    "kto": Format(
        lambda row: (
            ("label" in row or "kto_tag" in row) and any(key in row for key in ("completion", "messages", "conversations"))
        ),
        _kto,
        "prompt, completion (or messages) and a label, true or false",
    ),
    "gsm8k": Format(
        lambda row: "question" in row and isinstance(row.get("answer"), str) and "####" in row["answer"],
        _gsm8k,
        "question, answer: calculator marks removed, the number after #### without commas",
    ),
    "mbpp": Format(_has("code", "test_list"), _mbpp, "text (or prompt), code, test_list: CRLF becomes LF"),
    "humaneval": Format(_has("prompt", "canonical_solution", "entry_point"), _humaneval, "prompt, canonical_solution, test"),
    "messages": Format(
        lambda row: _objects(row, "messages") and "role" in row["messages"][0],
        _conversation,
        "messages of role and content (ChatML)",
    ),
    "sharegpt": Format(
        lambda row: _objects(row, "conversations") or _objects(row, "conversation") or _objects(row, "messages"),
        _conversation,
        "conversations of from and value",
    ),
    "alpaca": Format(
        _has("instruction", "output"), _alpaca, "instruction, input, output; input follows the instruction after a blank line"
    ),
    "dolly": Format(_has("instruction", "context", "response"), _alpaca, "instruction, context, response; as Alpaca"),
    "prompt_response": Format(
        lambda row: any(prompt in row and reply in row for prompt, reply in PROMPT_RESPONSE),
        _pair,
        "a pair of fields: " + ", ".join("/".join(pair) for pair in PROMPT_RESPONSE),
    ),
    "text": Format(_has("text"), _text_only, "plain text"),
    "prompts": Format(
        lambda row: any(row.get(key) is not None for key in PROMPT_ONLY),
        _prompt_only,
        "prompts only: one of " + ", ".join(PROMPT_ONLY),
    ),
}


def format_of(source: Source, sample: Sequence[Row]) -> str:
    """The name of a source's format; with `auto`, the first that at least 80 % of the sampled rows fit."""
    where = f"data source '{source.name}'"
    if source.format == "fields" or source.fields:
        unknown = sorted(set(source.fields) - set(MAPPABLE))
        if unknown or not {"prompt", "messages", "text", "chosen"} & set(source.fields):
            raise DataError(
                f"{where}: expected `fields` to map prompt, messages, text or chosen (and others of {', '.join(MAPPABLE)}), "
                f"found {unknown or sorted(source.fields)}. Correct `fields` in the data conf."
            )
        return "fields"
    if source.format != "auto":
        if source.format not in FORMATS:
            raise DataError(f"{where}: expected a format of {', '.join(FORMATS)}, auto or fields, found {source.format!r}.")
        return source.format
    for name, known in FORMATS.items():
        if sample and sum(known.fits(row) for row in sample) >= 0.8 * len(sample):
            return name
    keys = Counter(str(key) for row in sample for key in row)
    raise DataError(
        f"{where}: expected rows of a known format ({', '.join(FORMATS)}), found {len(sample)} rows with the fields "
        f"{', '.join(key for key, _ in keys.most_common(12)) or 'none'}. Name `format`, or map your `fields`, in the data conf."
    )


class _Watched(dict[str, Any]):
    """A row that remembers which of its fields were read."""

    def __init__(self, row: Row) -> None:
        super().__init__(row)
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def items(self) -> Any:
        self.read.update(self)
        return super().items()


def unused_fields(name: str, source: Source, sample: Sequence[Row]) -> list[str]:
    """The fields that a format takes no notice of, in any of the sampled rows that it can convert."""
    held: dict[str, None] = {}
    read: set[str] = set()
    for row in map(_Watched, sample):
        try:
            converter(name)(row, source)
        except RowFault:
            continue
        held |= dict.fromkeys(map(str, row))
        read |= row.read
    return [field for field in held if field not in read and field not in PROVENANCE]


def converter(name: str) -> Callable[[Row, Source], Record]:
    """What converts rows of a format, or of a mapping (`fields`)."""
    return FORMATS[name].convert if name in FORMATS else mapped
