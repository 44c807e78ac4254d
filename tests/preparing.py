"""Runs the work of `prepare` on files that a test writes, without the stage around it."""

import json
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from transformers import PreTrainedTokenizerBase

from plumbline.data.plans import role_from_files
from plumbline.data.rendering import Fitting
from plumbline.data.schema import ROLES, FilesData, Policy, Role, Source
from plumbline.data.selecting import check_limits
from plumbline.data.spool import Pool
from plumbline.data.writing import write_role
from plumbline.models.tokenizers import make_ready, train_tokenizer
from plumbline.pipeline.composing import CONF, require_sound
from plumbline.pipeline.records import read_jsonl
from plumbline.rows import Row
from stages.prepare import gather_all
from tests.shared import SHARED

NO_SHARED_DATA = f"no public data at {SHARED} (set PLUMBLINE_SHARED)"


class Prepared(NamedTuple):
    """The rows of every role and split, and the pools with what was dropped."""

    rows: dict[str, dict[str, list[Row]]]
    pools: dict[str, Pool]

    def dropped(self, role: str) -> Counter[str]:
        """Rows dropped from a role, by reason."""
        counts: Counter[str] = Counter()
        for (_, reason), count in self.pools[role].tally.dropped.items():
            counts[reason] += count
        return counts

    def examples(self, role: str) -> set[tuple[str, int, str]]:
        """(file, row, reason) of the first rows of each source that were dropped or noted."""
        return {(drop.file, drop.row, drop.reason) for drops in self.pools[role].tally.examples.values() for drop in drops}

    def first_drops(self, role: str) -> dict[str, tuple[str, int, str]]:
        """Source -> (file, row, reason) of the first row of each source that was dropped or noted."""
        examples = self.pools[role].tally.examples
        return {name: (drops[0].file, drops[0].row, drops[0].reason) for (name, _), drops in reversed(examples.items())}

    def kept(self, role: str) -> list[Row]:
        """The rows of a role, all splits together."""
        return [row for rows in self.rows[role].values() for row in rows]


@lru_cache
def small_tokenizer(template: str | None = None) -> PreTrainedTokenizerBase:
    """A tokenizer of 300 tokens, made once for all tests."""
    texts = ["What is one and one? It is two.", "오늘 날씨는 어때요? 맑아요."] * 20
    return make_ready(train_tokenizer(texts, 300), chat_template=template).tokenizer


def source(*files: str, **settings: Any) -> Source:
    """A source with a licence."""
    return Source(files=list(files), licence="MIT", **settings)


def lenient(**settings: Any) -> Policy:
    """A policy that counts drops and never fails."""
    limits = {"default": 1.0, "too_long": 1.0, "evaluation_overlap": 1.0} | settings.pop("limits", {})
    return Policy(limits=limits, **settings)


def data_conf(name: str) -> FilesData:
    """A conf of conf/data, typed."""
    values = OmegaConf.load(CONF / f"data/{name}.yaml")
    values.pop("defaults")
    data: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(FilesData), values))
    return data


def sources_of(data: FilesData) -> dict[str, list[Source]]:
    """The sources of every role of a data conf."""
    return {role: getattr(data, role).sources for role in ROLES}


def write_rows(path: Path, rows: list[Any]) -> None:
    """Writes a JSON Lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def prepare_rows(folder: Path, role: str, rows: list[Any], **settings: Any) -> Prepared:
    """Prepares these rows, in the file rows.jsonl, for one role; drops are counted, and equal rows stay."""
    write_rows(folder / "in/rows.jsonl", rows)
    policy = lenient(duplicates="off", near_duplicates="off")
    return prepare(folder, {role: [source("rows.jsonl", **settings)]}, policy)


def prepare(
    folder: Path,
    roles: dict[str, list[Source]],
    policy: Policy | None = None,
    *,
    context_tokens: int | None = None,
    template: str | None = None,
    validation: float = 0.0,
    test: float = 0.0,
) -> Prepared:
    """Prepares these sources, whose files are in `folder`/in; outputs go to `folder`/out."""
    policy = policy or Policy(limits={"evaluation_overlap": 1.0})  # of a few rows, one is more than a tenth
    data = FilesData(
        **{role: Role(sources) for role, sources in roles.items()},
        validation_fraction=validation,
        test_fraction=test,
        policy=policy,
    )
    require_sound(data)
    spool = folder / "spool"
    spool.mkdir(exist_ok=True)
    pools = gather_all({role: role_from_files(role, data, folder / "in") for role in ROLES}, policy, spool, processes=1)
    fitting = Fitting(context_tokens, policy.too_long, policy.answer_tokens)
    for role, pool in pools.items():
        write_role(pool, small_tokenizer(template), fitting, folder / "out" / role, processes=1)
        check_limits(role, pool.tally, policy)
    written = {role: {file.stem: read_jsonl(file) for file in sorted((folder / "out" / role).glob("*.jsonl"))} for role in ROLES}
    return Prepared(written, pools)
