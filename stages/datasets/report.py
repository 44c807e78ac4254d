"""The data report: how many rows came in, were kept and were dropped why; how long they are; what a model will really be fed."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.datasets.checks import REASONS
from stages.datasets.finishing import SplitStatistics
from stages.datasets.gathering import Drop, Pool
from stages.datasets.scripts import SCRIPTS
from stages.models.chat import Message, encode_turns, end_of_turn_id, prompt_ids, render, token_pieces
from stages.models.tokenizers import ReadyTokenizer

Statistics = Mapping[str, Mapping[str, SplitStatistics]]

NOTED = {
    "cut": "prompts whose start was cut off (policy.too_long: truncate)",
    "duplicate": "duplicates kept (policy.duplicates: report)",
    "near_duplicate": "near duplicates kept (policy.near_duplicates: report)",
    "evaluation_overlap": "rows that hold an evaluation prompt, kept (policy.decontaminate: report)",
    "email": "e-mail addresses",
    "phone": "phone numbers",
    "resident_number": "Korean resident registration numbers",
}
_SHOWN_TOKENS = 400


class Piece(NamedTuple):
    """A stretch of text between token boundaries: whether loss is on it, and how many tokens it took."""

    text: str
    loss: bool
    tokens: int


def metrics(pools: Mapping[str, Pool], statistics: Statistics) -> dict[str, float | int]:
    """The stage's figures, one flat object: `<role>.rows_in` = `.kept` + every `.dropped.<reason>`, lengths, script shares."""
    figures: dict[str, float | int] = {}
    for role, pool in pools.items():
        if not pool.tally.rows_in:
            continue
        figures[f"{role}.rows_in"] = sum(pool.tally.rows_in.values())
        figures[f"{role}.kept"] = int(pool.keep.sum())
        for reason, count in sorted(_by_reason(pool.tally.dropped).items()):
            figures[f"{role}.dropped.{reason}"] = count
        for reason, count in sorted(_by_reason(pool.tally.noted).items()):
            figures[f"{role}.noted.{reason}"] = count
        for split, known in statistics[role].items():
            figures[f"{role}.{split}.rows"] = len(known.lengths)
            figures |= {f"{role}.{split}.{name}": value for name, value in lengths(role, known).items()}
            figures |= {f"{role}.{split}.script.{name}": share for name, share in scripts(known).items()}
            figures |= {f"{role}.{split}.language.{code}": share for code, share in spoken(known).items()}
            if known.lengths:
                figures[f"{role}.{split}.byte_token_fraction"] = byte_share(known)
    return figures


def _by_reason(counts: Mapping[tuple[str, str], int]) -> Counter[str]:
    found: Counter[str] = Counter()
    for (_, reason), count in counts.items():
        found[reason] += count
    return found


def lengths(role: str, known: SplitStatistics) -> dict[str, float]:
    """Median, 95th percentile and maximum of tokens; for pairs also the mean gap, chosen minus rejected."""
    if not known.lengths:
        return {}
    tokens = np.array(known.lengths)
    parts = {"prompt_tokens": tokens[:, 0]}
    if role in ("sft", "unpaired", "preferences"):
        parts["completion_tokens"] = tokens[:, 1]
    if role == "pretrain":
        parts = {"text_tokens": tokens[:, 0]}
    figures = {}
    for name, values in parts.items():
        figures[f"{name}_median"] = float(np.median(values))
        figures[f"{name}_p95"] = float(np.percentile(values, 95))
        figures[f"{name}_max"] = int(values.max())
        figures[f"{name}_sum"] = int(values.sum())
    if role == "preferences":
        figures["rejected_tokens_median"] = float(np.median(tokens[:, 2]))
        figures["length_gap_tokens"] = round(float((tokens[:, 1] - tokens[:, 2]).mean()), 3)
        figures["chosen_longer_fraction"] = round(float((tokens[:, 1] > tokens[:, 2]).mean()), 4)
    return figures


def scripts(known: SplitStatistics) -> dict[str, float]:
    """Share of each script in the letters, those of at least 0.1 %."""
    total = int(known.scripts.sum())
    shares = {name: round(count / total, 4) for name, count in zip(SCRIPTS, known.scripts.tolist(), strict=True) if total}
    return {name: share for name, share in sorted(shares.items(), key=lambda item: -item[1]) if share >= 0.001}


def spoken(known: SplitStatistics) -> dict[str, float]:
    """Share of each language in the rows, where the script tells it."""
    rows = sum(known.languages.values())
    return {code: round(count / rows, 4) for code, count in known.languages.most_common() if code}


def byte_share(known: SplitStatistics) -> float:
    """Share of the tokens that are not characters but bytes of one, which is how a tokenizer spells what it does not know."""
    return round(known.byte_tokens / max(1, sum(map(sum, known.lengths))), 4)


def source_rows(pools: Mapping[str, Pool]) -> list[dict[str, Any]]:
    """Rows in, kept and dropped of every source, and why."""
    rows = []
    for role, pool in pools.items():
        for number, source in enumerate(pool.sources):
            dropped = {reason: count for (name, reason), count in sorted(pool.tally.dropped.items()) if name == source.name}
            kept = int(pool.keep[pool.columns["source"] == number].sum())
            why = ", ".join(f"{reason} {count}" for reason, count in dropped.items())
            rows.append(
                {"role": role, "source": source.name, "licence": source.licence, "rows_in": pool.tally.rows_in[source.name],
                 "kept": kept, "dropped": sum(dropped.values()), "why": why, "format": pool.formats[number],
                 "unused": ", ".join(pool.unused[number])}
            )  # fmt: skip
    return rows


def drop_rows(pools: Mapping[str, Pool]) -> list[dict[str, Any]]:
    """Examples of what was dropped or noted, with the place of each row."""
    return [
        {"role": role, "reason": drop.reason, "source": drop.source, "file": drop.file, "row": drop.row, "found": drop.found}
        for role, pool in pools.items()
        for drops in pool.tally.examples.values()
        for drop in drops
    ]


def tables(pools: Mapping[str, Pool], statistics: Statistics) -> dict[str, list[dict[str, Any]]]:
    """Tables for MLflow: sources, splits and examples of dropped rows."""
    splits = [
        {
            "role": role,
            "split": split,
            "rows": len(known.lengths),
            **lengths(role, known),
            "scripts": str(scripts(known)),
            "languages": str(spoken(known)),
            "byte_token_fraction": byte_share(known),
        }
        for role, parts in statistics.items()
        for split, known in parts.items()
        if known.lengths
    ]
    named = {"sources": source_rows(pools), "splits": splits, "dropped": drop_rows(pools)}
    return {name: rows for name, rows in named.items() if rows}


def section(pools: Mapping[str, Pool], statistics: Statistics, ready: ReadyTokenizer) -> str:
    """The report as a fragment of HTML, for the page that the report stage writes."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    used = {role: pool for role, pool in pools.items() if pool.tally.rows_in}
    return environment.get_template("section.html.j2").render(
        sources=source_rows(used),
        drops=[(role, pool, _drops(pool)) for role, pool in used.items() if pool.tally.dropped],
        noted=[
            (role, NOTED[reason], count)
            for role, pool in used.items()
            for reason, count in sorted(_by_reason(pool.tally.noted).items())
        ],
        reasons=REASONS,
        splits=[
            (role, split, known, lengths(role, known), scripts(known), spoken(known), byte_share(known))
            for role in used
            for split, known in statistics[role].items()
            if known.lengths
        ],
        examples=examples(statistics, ready),
        notes=ready.notes,
        vocabulary=len(ready.tokenizer),
        end=ready.tokenizer.convert_ids_to_tokens(end_of_turn_id(ready.tokenizer)),
        pad=ready.tokenizer.pad_token,
    )


def _drops(pool: Pool) -> list[tuple[str, int, list[Drop]]]:
    counts = _by_reason(pool.tally.dropped)
    shown = {
        reason: [drop for (_, name), drops in pool.tally.examples.items() if name == reason for drop in drops]
        for reason in counts
    }
    return [(reason, count, shown[reason][:5]) for reason, count in counts.most_common()]


def examples(statistics: Statistics, ready: ReadyTokenizer) -> list[tuple[str, str, list[Piece], bool]]:
    """A row of every split and language as the model is fed it: (role, split and column, pieces, whether it was cut here)."""
    shown = []
    for role, parts in statistics.items():
        for split, known in parts.items():
            for code, row in known.examples.items():
                for column, pieces in rendered(role, row, ready).items():
                    name = f"{split} {column}".strip() + (f" ({code})" if code else "")
                    shown.append((role, name, pieces[:_SHOWN_TOKENS], len(pieces) > _SHOWN_TOKENS))
    return shown


def rendered(role: str, row: dict[str, Any], ready: ReadyTokenizer) -> dict[str, list[Piece]]:
    """A row in pieces between token boundaries, marked where loss is; for a preference both answers."""
    tokenizer = ready.tokenizer
    if role == "prompts":
        return {"": _pieces(ready, prompt_ids(tokenizer, row["prompt"]), loss=False)}
    if role == "pretrain":
        text = row["text"] if "text" in row else render(tokenizer, row["messages"], add_generation_prompt=False)
        return {"": _pieces(ready, tokenizer(text, add_special_tokens=False)["input_ids"], loss=True)}
    answers: dict[str, list[Message]] = {name: row[name] for name in ("completion", "chosen", "rejected") if name in row}
    turns = encode_turns(tokenizer, [(row["prompt"], answer) for answer in answers.values()])
    return {
        name if name != "completion" else "": [
            *_pieces(ready, turn.prompt, loss=False),
            *_pieces(ready, turn.completion, loss=True),
        ]
        for name, turn in zip(answers, turns, strict=True)
    }


def _pieces(ready: ReadyTokenizer, ids: list[int], *, loss: bool) -> list[Piece]:
    return [Piece(text, loss, tokens) for text, tokens in token_pieces(ready.tokenizer, ids)]
