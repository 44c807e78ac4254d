"""The data report: how many rows came in and were kept, why the rest was dropped, how long rows are, what a model is really fed."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from plumbline.data.checks import COLUMNS
from plumbline.data.faults import REASONS
from plumbline.data.scripts import SCRIPTS
from plumbline.data.spool import Drop, Pool
from plumbline.data.writing import SplitSummary
from plumbline.models.chat import encode_turns, end_of_turn_id, prompt_ids, render, token_pieces
from plumbline.models.tokenizers import ReadyTokenizer
from plumbline.rows import Row

Summaries = Mapping[str, Mapping[str, SplitSummary]]
"""Role -> split -> what was counted of it."""

NOTED = {
    "cut": "prompts whose start was cut off (policy.too_long: truncate)",
    "duplicate": "duplicates kept (policy.duplicates: report)",
    "near_duplicate": "near duplicates kept (policy.near_duplicates: report)",
    "evaluation_overlap": "rows that contain an evaluation prompt, kept (policy.decontaminate: report)",
    "tied_scores": "pairs whose answers have equal scores, kept in the order that the data state",
    "email": "e-mail addresses",
    "phone": "phone numbers",
    "resident_number": "Korean resident registration numbers",
}
_SHOWN_DROPS = 5
_SHOWN_KEYS = 8
_SHOWN_TOKENS = 400
_LEAST_SHARE = 0.001  # of the letters, for a script to be listed


# --------------------------------------------------------------------------------------------------------------- figures


def metrics(pools: Mapping[str, Pool], summaries: Summaries) -> dict[str, float | int]:
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
        if pool.tally.unused:
            figures[f"{role}.noted.unused_message_keys"] = sum(pool.tally.unused.values())
        for split, summary in summaries[role].items():
            figures[f"{role}.{split}.rows"] = len(summary.lengths)
            figures |= {f"{role}.{split}.{name}": value for name, value in lengths(role, summary).items()}
            figures |= {f"{role}.{split}.script.{name}": share for name, share in script_shares(summary).items()}
            figures |= {f"{role}.{split}.language.{code}": share for code, share in language_shares(summary).items()}
            if summary.lengths:
                figures[f"{role}.{split}.byte_token_fraction"] = byte_token_fraction(summary)
    return figures


def _by_reason(counts: Mapping[tuple[str, str], int]) -> Counter[str]:
    """Counts of (source, reason), added up over the sources."""
    totals: Counter[str] = Counter()
    for (_, reason), count in counts.items():
        totals[reason] += count
    return totals


def lengths(role: str, summary: SplitSummary) -> dict[str, float]:
    """Median, 95th percentile, maximum and sum of tokens; for preferences also the mean gap, chosen minus rejected."""
    if not summary.lengths:
        return {}
    tokens = np.array(summary.lengths)
    parts = {"text_tokens" if role == "pretrain" else "prompt_tokens": tokens[:, 0]}
    if COLUMNS[role][1:]:
        parts["completion_tokens"] = tokens[:, 1]
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


def script_shares(summary: SplitSummary) -> dict[str, float]:
    """The share of each script in the letters, largest first, from 0.1 %."""
    total = int(summary.scripts.sum())
    shares = {name: round(count / total, 4) for name, count in zip(SCRIPTS, summary.scripts.tolist(), strict=True) if total}
    return {name: share for name, share in sorted(shares.items(), key=lambda item: -item[1]) if share >= _LEAST_SHARE}


def language_shares(summary: SplitSummary) -> dict[str, float]:
    """The share of each language in the rows, where the script implies the language."""
    rows = sum(summary.languages.values())
    return {code: round(count / rows, 4) for code, count in summary.languages.most_common() if code}


def byte_token_fraction(summary: SplitSummary) -> float:
    """The share of the tokens that are not whole characters but bytes of one."""
    return round(summary.byte_tokens / max(1, sum(map(sum, summary.lengths))), 4)


# ---------------------------------------------------------------------------------------------------------------- tables


def source_rows(pools: Mapping[str, Pool]) -> list[dict[str, Any]]:
    """Rows in, kept and dropped of every source, with the reasons."""
    rows = []
    for role, pool in pools.items():
        for number, source in enumerate(pool.sources):
            dropped = {reason: count for (name, reason), count in sorted(pool.tally.dropped.items()) if name == source.name}
            rows.append(
                {
                    "role": role,
                    "source": source.name,
                    "licence": source.licence,
                    "rows_in": pool.tally.rows_in[source.name],
                    "kept": int(pool.keep[pool.columns["source"] == number].sum()),
                    "dropped": sum(dropped.values()),
                    "reasons": ", ".join(f"{reason} {count}" for reason, count in dropped.items()),
                    "format": pool.formats[number],
                    "unused": ", ".join([*pool.unused[number], *_unused_keys(pool, source.name)]),
                }
            )
    return rows


def _unused_keys(pool: Pool, source: str) -> list[str]:
    """The keys of a source's messages that nothing uses, the most frequent ones with their counts."""
    counts = Counter({key: count for (name, key), count in pool.tally.unused.items() if name == source})
    return [f"{key} of {count:,} messages" for key, count in counts.most_common(_SHOWN_KEYS)]


def drop_rows(pools: Mapping[str, Pool]) -> list[dict[str, Any]]:
    """Examples of rows that were dropped or noted, each with its file and row number."""
    return [
        {"role": role, **drop._asdict()}
        for role, pool in pools.items()
        for drops in pool.tally.examples.values()
        for drop in drops
    ]


def tables(pools: Mapping[str, Pool], summaries: Summaries) -> dict[str, list[dict[str, Any]]]:
    """Tables for MLflow: sources, splits and examples of dropped rows."""
    splits = [
        {
            "role": role,
            "split": split,
            "rows": len(summary.lengths),
            **lengths(role, summary),
            "scripts": str(script_shares(summary)),
            "languages": str(language_shares(summary)),
            "byte_token_fraction": byte_token_fraction(summary),
        }
        for role, parts in summaries.items()
        for split, summary in parts.items()
        if summary.lengths
    ]
    named = {"sources": source_rows(pools), "splits": splits, "dropped": drop_rows(pools)}
    return {name: rows for name, rows in named.items() if rows}


# ------------------------------------------------------------------------------------------------------------------ page


class Piece(NamedTuple):
    """A stretch of text between token boundaries: whether loss is on it, and how many tokens it took."""

    text: str
    loss: bool
    tokens: int


class Example(NamedTuple):
    """A row as the model is fed it."""

    role: str
    name: str
    """The split, the column and the language."""
    pieces: list[Piece]
    is_cut: bool
    """Whether only its start is shown."""


def section(pools: Mapping[str, Pool], summaries: Summaries, ready: ReadyTokenizer) -> str:
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
        drops=[(role, _drops(pool)) for role, pool in used.items() if pool.tally.dropped],
        noted=[
            (role, NOTED[reason], count)
            for role, pool in used.items()
            for reason, count in sorted(_by_reason(pool.tally.noted).items())
        ],
        reasons=REASONS,
        splits=[
            {
                "role": role,
                "split": split,
                "rows": len(summary.lengths),
                "lengths": lengths(role, summary),
                "scripts": script_shares(summary),
                "languages": language_shares(summary),
                "byte_tokens": byte_token_fraction(summary),
            }
            for role in used
            for split, summary in summaries[role].items()
            if summary.lengths
        ],
        examples=examples(summaries, ready),
        notes=ready.notes,
        vocabulary=len(ready.tokenizer),
        end=ready.tokenizer.convert_ids_to_tokens(end_of_turn_id(ready.tokenizer)),
        pad=ready.tokenizer.pad_token,
    )


def _drops(pool: Pool) -> list[tuple[str, int, list[Drop]]]:
    """(reason, rows, first examples), the most frequent reason first."""
    counts = _by_reason(pool.tally.dropped)
    shown = {
        reason: [drop for (_, name), drops in pool.tally.examples.items() if name == reason for drop in drops]
        for reason in counts
    }
    return [(reason, count, shown[reason][:_SHOWN_DROPS]) for reason, count in counts.most_common()]


def examples(summaries: Summaries, ready: ReadyTokenizer) -> list[Example]:
    """A row of every split and language as the model is fed it."""
    shown = []
    for role, parts in summaries.items():
        for split, summary in parts.items():
            for code, row in summary.examples.items():
                for column, pieces in rendered(role, row, ready).items():
                    name = f"{split} {column}".strip() + (f" ({code})" if code else "")
                    shown.append(Example(role, name, pieces[:_SHOWN_TOKENS], len(pieces) > _SHOWN_TOKENS))
    return shown


def rendered(role: str, row: Row, ready: ReadyTokenizer) -> dict[str, list[Piece]]:
    """A row in pieces between token boundaries, marked where loss is: "" -> the row, or of a preference, column -> its answer."""
    tokenizer = ready.tokenizer
    if role == "prompts":
        return {"": _pieces(ready, prompt_ids(tokenizer, row["prompt"]), loss=False)}
    if role == "pretrain":
        text = row["text"] if "text" in row else render(tokenizer, row["messages"], add_generation_prompt=False)
        return {"": _pieces(ready, tokenizer(text, add_special_tokens=False)["input_ids"], loss=True)}
    columns = COLUMNS[role][1:]
    turns = encode_turns(tokenizer, [(row["prompt"], row[column]) for column in columns])
    return {
        "" if column == "completion" else column: [
            *_pieces(ready, turn.prompt, loss=False),
            *_pieces(ready, turn.completion, loss=True),
        ]
        for column, turn in zip(columns, turns, strict=True)
    }


def _pieces(ready: ReadyTokenizer, ids: list[int], *, loss: bool) -> list[Piece]:
    return [Piece(text, loss, tokens) for text, tokens in token_pieces(ready.tokenizer, ids)]
