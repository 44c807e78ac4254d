"""The schema of conf/data/<name>.yaml: which files become which data, and how strict the checks are."""

import codecs
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unicodedata import normalize

from omegaconf import MISSING, OmegaConf

from plumbline.checking.expectations import EXPECTATIONS
from plumbline.checking.instructions import COLUMN, read_instructions
from plumbline.data import filling
from plumbline.data.faults import REASONS
from plumbline.world.generate import ClosedWorldConfig

ROLES = ("prompts", "pretrain", "sft", "preferences", "unpaired")
"""The kinds of data. Prompts come first: the other roles are cleaned of those that are evaluated."""

SPLITS = ("train", "validation", "test")

DEFAULT_LIMITS = {
    "default": 0.01,
    "too_long": 0.10,
    "duplicate": 1.0,
    "near_duplicate": 1.0,
    "evaluation_overlap": 0.1,
    "mixture": 1.0,
    "undesirable": 1.0,
    "untrained": 1.0,
    "unfinished": 1.0,
}
"""The largest share of a source's rows that each reason may drop; above it the stage fails. `default` is for reasons not listed.

Reasons that reflect a choice rather than a fault (duplicates, the mixture, answers that are bad, untrained or cut off) have no limit. To that of
`evaluation_overlap` comes the fraction of the prompts that the data conf holds out, for the same prompts are dropped from the other roles.
"""

CHOICES = {
    "too_long": ("drop", "truncate", "fail"),
    "duplicates": ("drop", "report", "off"),
    "near_duplicates": ("drop", "report", "off"),
    "decontaminate": ("drop", "report", "off"),
    "personal_data": ("off", "report", "mask", "drop"),
}


def splits_of(role: str) -> tuple[str, ...]:
    """The splits of a role: only prompts are tested on."""
    return SPLITS if role == "prompts" else SPLITS[:2]


@dataclass
class Source:
    """One data set: files below `inputs`, or a hub id. Its rows keep its name, their row number and its licence."""

    name: str = ""  # in provenance and in the report; default: the hub id or the first file
    files: list[str] = field(default_factory=list)  # paths, folders or globs of shards, relative to `inputs`
    hub: str | None = None  # a data set of the Hugging Face hub, streamed
    subset: str | None = None  # the data set's configuration
    folder: str | None = None  # read only this folder of the hub's data set
    revision: str | None = None  # its commit: required, because without it results would depend on the day
    split: str = "train"
    format: str = "auto"  # a name in plumbline/data/formats.py, or `fields`
    fields: dict[str, str] = field(default_factory=dict)  # a format of your own: our column -> your field, or a template of them
    positive: list[str] = field(default_factory=list)  # values of `label` that mean good, of `preferred` the first
    negative: list[str] = field(default_factory=list)  # values that mean bad, or the second; any other value is not a verdict
    expects: str | None = None  # prompts: what they call for, `refusal` or `compliance`; as a column, positive is compliance
    instructions: list[dict[str, Any]] = field(default_factory=list)  # prompts: what every answer is checked for (docs/data.md)
    licence: str = MISSING
    weight: float | None = None  # proportion in a mixture; either every source of a role has one or none has
    skip: int = 0  # leave out this many rows at the start, such as those that another source reads
    limit: int | None = None  # read only this many rows, from there
    into: str | None = None  # train, validation or test: the split of all its rows, instead of the split by hash
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        self.name = self.name or self.hub or (self.files[0] if self.files else "")
        self.positive = [normalize("NFC", value) for value in self.positive]
        self.negative = [normalize("NFC", value) for value in self.negative]

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        complaints = []
        if bool(self.files) == bool(self.hub):
            complaints.append(f"expected either `files` or `hub`, found {'both' if self.hub else 'neither'}")
        if self.hub and self.revision is None:
            complaints.append("revision: expected the commit of the hub data set, found none")
        if self.folder and not self.hub:
            complaints.append("folder: expected `hub` beside it, found `files`. Write the folder into the paths of `files`")
        if self.skip < 0:
            complaints.append(f"skip: expected at least 0, found {self.skip}")
        if self.limit is not None and self.limit < 1:
            complaints.append(f"limit: expected at least 1, found {self.limit}")
        if both := sorted(set(self.positive) & set(self.negative)):
            complaints.append(f"positive, negative: expected different values, found {both} in both")
        if self.expects not in (None, *EXPECTATIONS):
            complaints.append(f"expects: expected {' or '.join(EXPECTATIONS)}, found {self.expects!r}")
        if self.expects and "expects" in self.fields:
            complaints.append("expects: expected one value for the source or a field of its rows in `fields`, found both")
        if self.instructions and COLUMN in self.fields:
            complaints.append("instructions: expected them for the source or as a field of its rows in `fields`, found both")
        try:
            read_instructions(self.instructions)
        except ValueError as error:
            complaints.append(str(error))
        complaints += [
            f"fields.{column}: {complaint}" for column, path in self.fields.items() if (complaint := filling.problem(path))
        ]
        if not self.licence.strip():
            complaints.append("licence: expected a licence, found none. Write `unknown` if none is stated")
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            complaints.append(f"encoding: expected the name of an encoding, such as utf-8 or cp949, found {self.encoding!r}")
        return complaints


@dataclass
class Role:
    """The sources of one kind of data; without sources, there are no such data."""

    sources: list[Source] = field(default_factory=list)


@dataclass
class Policy:
    """What happens to rows that are valid but unwanted, and how many rows may be lost."""

    too_long: str = "drop"  # drop, truncate (cut the prompt's start) or fail: rows longer than the model's context_tokens
    answer_tokens: int = 64  # kept free in the context for the answer to a prompt without one
    duplicates: str = "drop"  # drop, report or off: the same text again within a role
    near_duplicates: str = "report"  # drop, report or off: MinHash similarity of at least near_duplicate_similarity
    near_duplicate_similarity: float = 0.8
    decontaminate: str = "drop"  # drop, report or off: training rows that contain an evaluation prompt
    ngram_words: int = 8  # as in Tülu 3 (arXiv:2411.15124), which also counts half of a prompt's n-grams as a hit
    ngram_overlap: float = 0.5
    personal_data: str = "report"  # off, report, mask or drop
    line_mib: int = 16  # a longer line is dropped unread
    limits: dict[str, float] = field(default_factory=dict)  # reason -> largest share of a source dropped; over DEFAULT_LIMITS

    def problems(self) -> list[str]:
        """What does not fit; empty if all does. A typo would otherwise silently select another policy."""
        complaints = [
            f"{name}: expected {', '.join(choices[:-1])} or {choices[-1]}, found {getattr(self, name)!r}"
            for name, choices in CHOICES.items()
            if getattr(self, name) not in choices
        ]
        if unknown := sorted(set(self.limits) - set(REASONS) - {"default"}):
            complaints.append(f"limits: expected reasons among {', '.join(REASONS)}, found {unknown}")
        ranges = {
            "near_duplicate_similarity": (self.near_duplicate_similarity, 0.1, 1),
            "ngram_overlap": (self.ngram_overlap, 0.01, 1),
            "ngram_words": (self.ngram_words, 1, 100),
            "line_mib": (self.line_mib, 1, 1024),
            "answer_tokens": (self.answer_tokens, 0, float("inf")),
        }
        return complaints + _out_of_range(ranges | {f"limits.{reason}": (share, 0, 1) for reason, share in self.limits.items()})


@dataclass
class FilesData:
    """Data read from files below `inputs` or from the hub."""

    kind: str = "files"
    pretrain: Role = field(default_factory=Role)  # texts, or conversations to read as text; only `model: tiny` needs them
    sft: Role = field(default_factory=Role)
    preferences: Role = field(default_factory=Role)
    unpaired: Role = field(default_factory=Role)  # single completions labelled good or bad, for KTO
    prompts: Role = field(default_factory=Role)  # train: rollouts; validation, test: evaluation
    validation_fraction: float = 0.05  # of a role's prompts, by a hash of the prompt: the same in every role and for every seed
    test_fraction: float = 0.05  # of `prompts` only; decontamination removes these prompts from the other roles
    policy: Policy = field(default_factory=Policy)

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        complaints = [complaint for role in ROLES for complaint in source_problems(role, getattr(self, role).sources)]
        held_out = self.validation_fraction + self.test_fraction
        return complaints + _out_of_range(
            {
                "validation_fraction": (self.validation_fraction, 0, 1),
                "test_fraction": (self.test_fraction, 0, 1),
                "validation_fraction + test_fraction": (held_out, 0, 0.99),
            }
        )


def source_problems(role: str, sources: Sequence[Source]) -> list[str]:
    """What does not fit in the sources of a role, each by itself and all together."""
    complaints = []
    for source in sources:
        messages = source.problems()
        if source.into not in (None, *splits_of(role)):
            messages.append(f"into: expected one of {', '.join(splits_of(role))}, found {source.into!r}")
        if role != "prompts" and (source.expects or "expects" in source.fields):
            messages.append(f"expects: expected only in `prompts`, whose answers are evaluated, found in `{role}`")
        if role != "prompts" and (source.instructions or COLUMN in source.fields):
            messages.append(f"instructions: expected only in `prompts`, whose answers are checked, found in `{role}`")
        complaints += [f"{role}: source '{source.name}': {message}" for message in messages]
    if repeated := [name for name, count in Counter(source.name for source in sources).items() if count > 1]:
        complaints.append(f"{role}: expected sources with different names, found '{repeated[0]}' twice. Set `name`")
    weights = {source.name: source.weight for source in sources}
    if any(weight is not None for weight in weights.values()) and not all(weight and weight > 0 for weight in weights.values()):
        complaints.append(f"{role}: expected a weight above 0 for every source or for none, found {weights}")
    return complaints


def _out_of_range(values: Mapping[str, tuple[float, float, float]]) -> list[str]:
    """A complaint for each (value, least, most) outside its bounds, which are inclusive."""
    return [
        f"{name}: expected a value from {least:g} to {most:g}, found {value:g}"
        for name, (value, least, most) in values.items()
        if not least <= value <= most
    ]


def typed_data(data: Any) -> FilesData | ClosedWorldConfig:
    """The data conf as an instance of its schema; a conf without a schema is the closed world's."""
    if isinstance(data, (FilesData, ClosedWorldConfig)):
        return data
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ClosedWorldConfig), data))  # type: ignore[return-value]


SCHEMAS: dict[str, Any] = {"files_schema": FilesData, "closed_world_schema": ClosedWorldConfig}

WORLD_POLICY = Policy(duplicates="report", near_duplicates="off", decontaminate="off", personal_data="off")
"""The closed world asks many similar questions on purpose and splits by what is asked, so similar rows are not a fault there."""
