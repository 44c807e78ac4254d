"""Public data formats: how each is recognised, and what converts its rows into TRL's conversational columns.

Converters change nothing beyond what the format's entry in `FORMATS` says. A format of your own needs no code: map its fields in
conf/data/<name>.yaml (plumbline/data/mapping.py).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from plumbline.data import demonstrations, preferences
from plumbline.data.demonstrations import PROMPT_ONLY, PROMPT_RESPONSE
from plumbline.data.faults import DataError, RowFault
from plumbline.data.fields import Kind, RawRow, Record, messages, text
from plumbline.data.mapping import MAPPABLE, mapped
from plumbline.data.marks import verdict_of
from plumbline.data.questions import prompt_of, question_field, system_turn
from plumbline.data.schema import Source
from plumbline.rows import PREFERENCES

PROVENANCE = ("source", "file", "row", "licence")
"""Columns that `prepare` writes anew for every row."""

_SHARE_THAT_FITS = 0.8  # of the sampled rows, for a format to be recognised


class Format(NamedTuple):
    """How one format is recognised and converted."""

    fits: Callable[[RawRow], bool]
    convert: Callable[[RawRow, Source], Record]
    what: str


# ------------------------------------------------------------------------------------------------------------ our own rows

_OWN_COLUMNS: dict[Kind, tuple[str, ...]] = {
    "preference": PREFERENCES,
    "unpaired": ("prompt", "completion", "label"),
    "instruction": ("prompt", "completion"),
    "prompt": ("prompt",),
    "conversation": ("messages",),
    "text": ("text",),
}


def _own(row: RawRow, source: Source) -> Record:
    """Rows as this project writes them: all columns are kept as they are."""
    kind = next((kind for kind, columns in _OWN_COLUMNS.items() if all(column in row for column in columns)), None)
    if kind is None:
        raise RowFault(
            "missing_field", f"expected columns of one of {', '.join(_OWN_COLUMNS)}, found {sorted(map(str, row))[:8]}"
        )
    columns = {column: _own_value(row, column, source) for column in _OWN_COLUMNS[kind]}
    extra = {key: value for key, value in row.items() if key not in columns and key not in PROVENANCE}
    return Record(kind, columns, extra)


def _own_value(row: RawRow, column: str, source: Source) -> Any:
    if column == "text":
        return text(row, column)
    if column == "label":
        return preferences.label_of(row[column], source)
    turns = messages(row[column], column)
    if column == "prompt":
        return prompt_of(row, column)
    return [*system_turn(row), *turns] if column == "messages" else turns


def _is_own(row: RawRow) -> bool:
    """Whether prompts and answers are messages, with no prompt to be split off the answers."""
    return all(
        isinstance(row.get(column, []), list) and all(isinstance(item, dict) and "role" in item for item in row.get(column, []))
        for column in ("prompt", "completion", "chosen", "rejected")
    ) and (bool(row.get("prompt")) and ("chosen" not in row or len(row["chosen"]) == 1))


# ---------------------------------------------------------------------------------------------------------------- formats


def _has(*keys: str) -> Callable[[RawRow], bool]:
    return lambda row: all(key in row for key in keys)


def _is_hh(row: RawRow) -> bool:
    return all(
        isinstance(row.get(key), str) and row[key].lstrip().startswith(("Human:", "Assistant:")) for key in ("chosen", "rejected")
    )


def _has_objects(row: RawRow, key: str) -> bool:
    """Whether a field is a list that begins with an object."""
    value = row.get(key)
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


# In the order of detection: the first that fits.
FORMATS: dict[str, Format] = {
    "plumbline": Format(_is_own, _own, "this project's own: prompt, completion, chosen, rejected as messages"),
    "hh": Format(
        _is_hh, preferences.hh, "HH-RLHF transcripts; the last assistant turn is split off, rows whose prompts differ are refused"
    ),
    "preference": Format(_has("chosen", "rejected"), preferences.pair, "prompt, chosen, rejected as strings or messages"),
    "comparison": Format(
        _has("output_1", "output_2"), preferences.comparison, "output_1, output_2 and label or preference (1, 2, tie)"
    ),
    "ultrafeedback": Format(
        lambda row: _has_objects(row, "completions") and "scores" not in row,
        preferences.ultrafeedback,
        "completions with overall_score; best against worst",
    ),
    "scored": Format(
        lambda row: question_field(row) is not None and "completions" in row and "scores" in row,
        preferences.scored,
        "prompt, completions, scores; best against worst",
    ),
    "ranked": Format(
        lambda row: question_field(row) is not None and any(key in row for key in ("ranked", "ranking")),
        preferences.ranked,
        "prompt and `ranked` (or ranking, responses, completions) from best to worst; best against worst",
    ),
    "kto": Format(
        lambda row: (
            ("label" in row and any(key in row for key in ("completion", "messages", "conversations")))
            or ("kto_tag" in row and any(key in row for key in (*preferences.REPLIES, *demonstrations.CONVERSATIONS)))
        ),
        preferences.kto,
        "prompt, completion (or messages) and a label, or any answer and a kto_tag, true or false",
    ),
    "gsm8k": Format(
        lambda row: "question" in row and isinstance(row.get("answer"), str) and "####" in row["answer"],
        demonstrations.gsm8k,
        "question, answer: calculator marks removed, the number after #### without commas",
    ),
    "mbpp": Format(_has("code", "test_list"), demonstrations.mbpp, "text (or prompt), code, test_list: CRLF becomes LF"),
    "humaneval": Format(
        _has("prompt", "canonical_solution", "entry_point"), demonstrations.humaneval, "prompt, canonical_solution, test"
    ),
    "ifeval": Format(
        _has("prompt", "instruction_id_list", "kwargs"),
        demonstrations.ifeval,
        "prompt, instruction_id_list, kwargs: the last two become `instructions`",
    ),
    "messages": Format(
        lambda row: _has_objects(row, "messages") and "role" in row["messages"][0],
        demonstrations.conversation,
        "messages of role and content (ChatML)",
    ),
    "sharegpt": Format(
        lambda row: any(_has_objects(row, key) for key in ("conversations", "conversation", "messages")),
        demonstrations.conversation,
        "conversations of from and value",
    ),
    "alpaca": Format(
        _has("instruction", "output"),
        demonstrations.alpaca,
        "instruction, input, output; input follows the instruction after a blank line",
    ),
    "dolly": Format(
        _has("instruction", "context", "response"), demonstrations.alpaca, "instruction, context, response; as Alpaca"
    ),
    "prompt_response": Format(
        lambda row: any(prompt in row and reply in row for prompt, reply in PROMPT_RESPONSE),
        demonstrations.prompt_response,
        "a pair of fields: " + ", ".join("/".join(pair) for pair in PROMPT_RESPONSE),
    ),
    "text": Format(_has("text"), demonstrations.plain_text, "plain text"),
    "prompts": Format(
        lambda row: any(row.get(key) is not None for key in PROMPT_ONLY),
        demonstrations.prompt_only,
        "prompts only: one of " + ", ".join(PROMPT_ONLY),
    ),
}


def converter(name: str) -> Callable[[RawRow, Source], Record]:
    """What converts rows of a format, or of a mapping (`fields`)."""
    return FORMATS[name].convert if name in FORMATS else mapped


# -------------------------------------------------------------------------------------------------------------- detection


def format_of(source: Source, sample: Sequence[RawRow]) -> str:
    """The name of a source's format; with `auto`, the first that at least 80 % of the sampled rows fit.

    Raises:
        DataError: the format is unknown, `fields` maps no content, or no format fits.
    """
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
            raise DataError(
                f"{where}: expected a format of {', '.join(FORMATS)}, auto or fields, found {source.format!r}. "
                "Correct `format` in the data conf."
            )
        return source.format
    for name, candidate in FORMATS.items():
        if sample and sum(candidate.fits(row) for row in sample) >= _SHARE_THAT_FITS * len(sample):
            return name
    keys = Counter(str(key) for row in sample for key in row)
    raise DataError(
        f"{where}: expected rows of a known format ({', '.join(FORMATS)}), found {len(sample)} rows with the fields "
        f"{', '.join(key for key, _ in keys.most_common(12)) or 'none'}. Name `format`, or map your `fields`, in the data conf."
    )


class _WatchedRow(dict[str, Any]):
    """A row that remembers which of its fields were read."""

    def __init__(self, row: RawRow) -> None:
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


def unused_fields(name: str, source: Source, sample: Sequence[RawRow]) -> list[str]:
    """The fields that are ignored in every sampled row that the format can convert."""
    fields: dict[str, None] = {}
    read: set[str] = set()
    for row in sample:
        watched = _WatchedRow(row)
        try:
            converter(name)(watched, source)
        except RowFault:
            continue
        fields |= dict.fromkeys(map(str, row))
        read |= watched.read | {field for field, value in row.items() if verdict_of(field, value) is not None}
    return [field for field in fields if field not in read and field not in PROVENANCE]
