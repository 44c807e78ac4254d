"""Runs the work of `prepare` on files that a test writes, without the stage around it."""

import json
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from transformers import PreTrainedTokenizerBase

from stages.datasets.config import FilesData, Policy, Role, Source
from stages.datasets.finishing import finish
from stages.datasets.gathering import Pool, files_role, gather
from stages.datasets.rendering import Fitting
from stages.datasets.selection import check_limits, index_evaluation, select
from stages.models.tokenizers import make_ready, train_tokenizer
from stages.pipeline.composing import CONF
from stages.pipeline.records import read_jsonl

ROLES = ("prompts", "pretrain", "sft", "preferences", "unpaired")


class Prepared(NamedTuple):
    """The rows of every role and split, and what is known of those that were dropped."""

    rows: dict[str, dict[str, list[dict[str, Any]]]]
    pools: dict[str, Pool]

    def dropped(self, role: str) -> Counter[str]:
        """Rows dropped from a role, by reason."""
        counts: Counter[str] = Counter()
        for (_, reason), count in self.pools[role].tally.dropped.items():
            counts[reason] += count
        return counts

    def places(self, role: str) -> set[tuple[str, int, str]]:
        """(file, row, reason) of the examples of what was dropped or noted."""
        return {(drop.file, drop.row, drop.reason) for drops in self.pools[role].tally.examples.values() for drop in drops}

    def kept(self, role: str) -> list[dict[str, Any]]:
        """The rows of a role, all splits together."""
        return [row for rows in self.rows[role].values() for row in rows]


@lru_cache
def small_tokenizer(template: str | None = None) -> PreTrainedTokenizerBase:
    """A tokenizer of 300 tokens, made once for all tests."""
    texts = ["What is one and one? It is two.", "오늘 날씨는 어때요? 맑아요."] * 20
    return make_ready(train_tokenizer(texts, 300), chat_template=template).tokenizer


def source(*files: str, **settings: Any) -> Source:
    """A source under a licence."""
    return Source(files=list(files), licence="MIT", **settings)


def lenient(**settings: Any) -> Policy:
    """A policy that counts drops and never fails."""
    limits = {"default": 1.0, "too_long": 1.0} | settings.pop("limits", {})
    return Policy(limits=limits, **settings)


def data_conf(name: str) -> FilesData:
    """A conf of conf/data, typed."""
    values = OmegaConf.load(CONF / f"data/{name}.yaml")
    values.pop("defaults")
    data: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(FilesData), values))
    return data


def write_rows(path: Path, rows: list[Any]) -> None:
    """A JSON Lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def prepare(
    folder: Path,
    roles: dict[str, list[Source]],
    policy: Policy | None = None,
    *,
    context_tokens: int | None = None,
    template: str | None = None,
    validation: float = 0.0,
    test: float = 0.0,
    processes: int = 1,
) -> Prepared:
    """Prepares the given sources, files of which lie in `folder`/in; outputs go to `folder`/out."""
    policy = policy or Policy()
    data = FilesData(
        **{role: Role(sources) for role, sources in roles.items()},
        validation_fraction=validation,
        test_fraction=test,
        policy=policy,
    )
    spool = folder / "spool"
    spool.mkdir(exist_ok=True)
    overlaps, pools = None, {}
    items = {role: files_role(role, data, folder / "in") for role in ROLES}
    for role in ROLES:
        gathering, rows = items[role]
        pools[role] = gather(gathering._replace(overlaps=overlaps), rows, spool / role, processes)
        check_limits(role, pools[role].tally, policy)
        if role == "prompts" and policy.decontaminate != "off":
            overlaps = index_evaluation(pools[role], policy)
        select(pools[role], policy)
    tokenizer = small_tokenizer(template)
    fitting = Fitting(context_tokens, policy.too_long, policy.answer_tokens)
    for role in ROLES:
        finish(pools[role], tokenizer, fitting, folder / "out" / role, processes)
        check_limits(role, pools[role].tally, policy)
    written = {role: {file.stem: read_jsonl(file) for file in sorted((folder / "out" / role).glob("*.jsonl"))} for role in ROLES}
    return Prepared(written, pools)
