"""The schema of conf/data/<name>.yaml: which files become which data, and how strict the checks are."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, OmegaConf

from stages.world.generate import ClosedWorldConfig

# Largest share of a source's rows that each reason may drop before the stage fails; `default` is for reasons not named. Reasons
# that are wishes and not faults (duplicates, a limit, the mixture) have no limit.
DEFAULT_LIMITS = {
    "default": 0.01,
    "too_long": 0.10,
    "duplicate": 1.0,
    "near_duplicate": 1.0,
    "evaluation_overlap": 1.0,
    "mixture": 1.0,
    "undesirable": 1.0,
}


@dataclass
class Source:
    """One data set: files below `inputs`, or a hub id. Rows keep its name, their row number and its licence."""

    name: str = ""  # in provenance and in the report; default: the first file or the hub id
    files: list[str] = field(default_factory=list)  # paths, folders or globs of shards, relative to `inputs`
    hub: str | None = None  # a data set of the Hugging Face hub, streamed
    subset: str | None = None  # its configuration
    revision: str | None = None  # its commit: required, or results would depend on the day
    split: str = "train"
    format: str = "auto"  # a name in stages/datasets/formats.py, or `fields`
    fields: dict[str, str] = field(default_factory=dict)  # of a format of your own: our column -> your field
    positive: list[str] = field(default_factory=list)  # values of `label` or `preferred` that mean good, or the first
    negative: list[str] = field(default_factory=list)  # values that mean bad, or the second; anything else is no verdict
    licence: str = MISSING
    weight: float | None = None  # proportion in a mixture; either every source of a role has one or none has
    limit: int | None = None  # read only the first rows
    into: str | None = None  # train, validation or test: where all its rows go, instead of the split by hash
    encoding: str = "utf-8"


@dataclass
class Role:
    """What one kind of data is made from; no sources: none of it."""

    sources: list[Source] = field(default_factory=list)


@dataclass
class Policy:
    """What happens to rows that are valid but not wanted, and how many rows may be lost."""

    too_long: str = "drop"  # drop, truncate (the prompt's start is cut) or fail; against the model's context_tokens
    answer_tokens: int = 64  # kept free in the context for the answer to a prompt that is only asked
    duplicates: str = "drop"  # drop, report or off: the same text again within a role
    near_duplicates: str = "report"  # drop, report or off: MinHash similarity of at least near_duplicate_similarity
    near_duplicate_similarity: float = 0.8
    decontaminate: str = "drop"  # drop, report or off: training rows that hold an evaluation prompt
    ngram_words: int = 8  # Tülu 3's (arXiv:2411.15124), which also takes half of a prompt's n-grams as a hit
    ngram_overlap: float = 0.5
    personal_data: str = "report"  # off, report, mask or drop
    line_mib: int = 16  # a longer line is dropped unread
    limits: dict[str, float] = field(default_factory=dict)  # over DEFAULT_LIMITS: reason -> largest share of a source dropped


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
    test_fraction: float = 0.05  # of `prompts` only; the other roles lose these prompts to decontamination
    policy: Policy = field(default_factory=Policy)


def typed_data(data: Any) -> FilesData | ClosedWorldConfig:
    """The data conf as an instance of its schema; a conf that names no schema is the closed world's."""
    if isinstance(data, (FilesData, ClosedWorldConfig)):
        return data
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ClosedWorldConfig), data))  # type: ignore[return-value]


SCHEMAS: dict[str, Any] = {"files_schema": FilesData, "closed_world_schema": ClosedWorldConfig}

# The closed world is made to be asked in many similar ways, and splits by what is asked: similar rows are no fault of it.
WORLD_POLICY = Policy(duplicates="report", near_duplicates="off", decontaminate="off", personal_data="off")
