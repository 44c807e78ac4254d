"""Makes rows to learn from of what people said: votes, thumbs and corrected answers.

Reads `data/feedback/*.jsonl`, which `make chat` and `make feedback` write, the tokenizer and the context of `artifacts/policy/<policy>`, and the
evaluation prompts. Writes `artifacts/feedback/<entry>/{train,validation}.jsonl`, `artifacts/feedback/<entry>/dropped.jsonl` with the place of
each of the first rows that cannot be used, and the counts in `artifacts/figures/feedback/<entry>.json`.

plumbline/feedback/judgements.py says which rows a line becomes. They pass the checks of `prepare`: messages, personal data, overlap with the
evaluation prompts, duplicates, the chat template and the context; rows in = rows kept + rows dropped. It takes seconds.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.data.schema import Policy
from plumbline.feedback.folder import FOLDER, Entry, current, read
from plumbline.feedback.judgements import ROLES, Judgement, judgements
from plumbline.feedback.lines import VERDICTS, VOTE, Answer, Line
from plumbline.pipeline.composing import entry_name, register, typed
from plumbline.pipeline.execution import executing, launched
from plumbline.pipeline.ranges import BELOW_ONE, outside
from plumbline.pipeline.records import write_json, write_jsonl
from plumbline.rows import conversation_text, last_turn

if TYPE_CHECKING:
    from plumbline.data.plans import Incoming
    from plumbline.data.spool import Pool
    from plumbline.data.writing import SplitSummary

POLICIES, PROMPTS = Path("artifacts/policy"), Path("artifacts/data/prompts")
UNKNOWN = "unknown"
"""The licence of what people typed, which no line states."""
SHOWN = 40
"""The number of rows in MLflow's table."""


@dataclass
class FeedbackEntry:
    """One entry of params.yaml's `feedback`; values and their meaning: conf/feedback.yaml."""

    policy: str = MISSING
    kind: str = MISSING
    answers_of: list[str] = MISSING
    validation_fraction: float = MISSING
    too_long: str = MISSING
    duplicates: str = MISSING
    decontaminate: str = MISSING
    personal_data: str = MISSING
    limits: dict[str, float] = MISSING

    def checks(self) -> Policy:
        """What happens to rows that are valid but not wanted, as a file of conf/data says it."""
        return Policy(
            too_long=self.too_long,
            duplicates=self.duplicates,
            near_duplicates="off",
            decontaminate=self.decontaminate,
            personal_data=self.personal_data,
            limits=dict(self.limits),
        )

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        complaints = [] if self.kind in ROLES else [f"kind: expected one of {', '.join(ROLES)}, found {self.kind!r}"]
        return complaints + outside(self, validation_fraction=BELOW_ONE) + self.checks().problems()


@dataclass
class FeedbackStage:
    """The values that decide what is made of the feedback."""

    threads: int = MISSING
    feedback: FeedbackEntry = field(default_factory=FeedbackEntry)

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        return [] if FOLDER.is_dir() else [f"feedback: expected the folder {FOLDER}, found none: run `mkdir -p {FOLDER}`"]


def chosen(entries: list[Entry], policies: Sequence[str]) -> list[Entry]:
    """The entries about answers of these policies, all of them if none is named, and the lines that cannot be read.

    Raises:
        ValueError: a policy is named that gave none of the answers, or there are no lines at all.
    """
    lines = [entry.content for entry in entries if isinstance(entry.content, Line)]
    if not entries:
        raise ValueError(
            f"expected feedback in {FOLDER}/*.jsonl, found none. Give some with `make chat POLICY=sft`, or bring it from MLflow with "
            "`make feedback`, then run `make repro` again"
        )
    by_policy = Counter(str(answer.policy) for line in lines for answer in line.answers)
    if unknown := [name for name in policies if name not in by_policy]:
        raise ValueError(
            f"answers_of: expected policies whose answers {FOLDER} has feedback on ({', '.join(by_policy) or 'none'}), found {unknown[0]}. "
            "Correct the names in params.yaml"
        )
    wanted = set(policies or by_policy)
    return [entry for entry in entries if not isinstance(entry.content, Line) or _is_about(entry.content, wanted)]


def _is_about(line: Line, policies: set[str]) -> bool:
    answers = line.answers if line.kind == VOTE else [line.answers[line.about]]
    return {str(answer.policy) for answer in answers} <= policies


def incoming(stated: Sequence[Judgement], settings: FeedbackEntry, overlaps: Any) -> "Incoming":
    """The judgements as a role's rows, each file of feedback a source."""
    from plumbline.data.plans import Incoming, RolePlan
    from plumbline.data.reading import Item
    from plumbline.data.schema import Source

    names = list(dict.fromkeys(judgement.file for judgement in stated))
    plan = RolePlan(
        ROLES[settings.kind],
        [Source(name=name, files=[name], licence=UNKNOWN) for name in names],
        ["plumbline"] * len(names),
        [[] for _ in names],
        settings.checks(),
        settings.validation_fraction,
        0.0,
        overlaps,
    )
    return Incoming(plan, ((names.index(judgement.file), Item(*judgement)) for judgement in stated))


def evaluation_overlaps(checks: Policy) -> Any:
    """The index of the prompts that policies are evaluated on; None if the entry does not look for them."""
    from plumbline.data.decontamination import index_prompts
    from plumbline.data.texts import question_text
    from plumbline.pipeline.records import stream_jsonl

    def questions() -> Iterator[str]:
        for split in ("validation", "test"):
            yield from map(question_text, stream_jsonl(PROMPTS / f"{split}.jsonl"))

    return None if checks.decontaminate == "off" else index_prompts(questions(), checks.ngram_words, checks.ngram_overlap)


def run(config: FeedbackStage, entry: str) -> None:
    """Reads the lines, writes the rows that they state, and says what became of them."""
    settings = config.feedback
    with executing("feedback", entry, config, [FOLDER, POLICIES / settings.policy, PROMPTS]) as work:
        everything = [*read()]
        standing = current(everything)
        lines = chosen(standing, settings.answers_of)
        rows = row_figures(*write_rows(lines, config, entry, work.output(f"artifacts/feedback/{entry}")))
        figures = {"replaced": len(everything) - len(standing), **line_figures(lines), **rows}
        write_json(work.output(f"artifacts/figures/feedback/{entry}.json"), figures)
        work.run.log_figures(figures)
        work.run.log_table("said", [_shown(line.content) for line in lines if isinstance(line.content, Line)][:SHOWN])


def write_rows(lines: list[Entry], config: FeedbackStage, entry: str, output: Path) -> "tuple[Pool, dict[str, SplitSummary]]":
    """Checks, selects and writes the rows that the lines state, and the places of those that were dropped.

    Raises:
        ValueError: too many rows of one source are dropped, or a split has none left.
    """
    from plumbline.data.gathering import gather
    from plumbline.data.selecting import check_limits, select

    settings, checks = config.feedback, config.feedback.checks()
    limit_at = f"feedback.{entry}.limits.{{}} in params.yaml"
    plan, items = incoming(judgements(lines, settings.kind), settings, evaluation_overlaps(checks))
    with tempfile.TemporaryDirectory(prefix=".spool-", dir=output.parent) as spool:
        pool = gather(plan, items, Path(spool) / plan.role, config.threads)
        check_limits(settings.kind, pool.tally, checks, limit_at)
        select(pool, checks)
        summaries = write(pool, POLICIES / settings.policy, checks, output, config.threads)
    check_limits(settings.kind, pool.tally, checks, limit_at)
    require_rows(pool, summaries, settings)
    write_jsonl(output / "dropped.jsonl", (drop._asdict() for drops in pool.tally.examples.values() for drop in drops))
    return pool, summaries


def write(pool: "Pool", policy: Path, checks: Policy, output: Path, processes: int) -> "dict[str, SplitSummary]":
    """Writes the kept rows, rendered and checked as the policy will read them."""
    from transformers import AutoConfig, AutoTokenizer

    from plumbline.data.rendering import Fitting
    from plumbline.data.writing import write_role
    from plumbline.models.loading import context_of

    fitting = Fitting(context_of(AutoConfig.from_pretrained(policy)), checks.too_long, checks.answer_tokens)
    return write_role(pool, AutoTokenizer.from_pretrained(policy), fitting, output, processes)


def require_rows(pool: "Pool", summaries: "dict[str, SplitSummary]", settings: FeedbackEntry) -> None:
    """Refuses feedback that leaves a split without rows, which no method could learn from.

    Raises:
        ValueError: it does.
    """
    needed = ("train", *(("validation",) if settings.validation_fraction else ()))
    if short := [split for split in needed if not summaries[split].lengths]:
        dropped = ", ".join(f"{reason} {count}" for (_, reason), count in sorted(pool.tally.dropped.items()))
        raise ValueError(
            f"expected {settings.kind} for the split {short[0]}, found none among {sum(pool.tally.rows_in.values())} rows (dropped: "
            f"{dropped or 'none'}). Give more feedback, of a kind that becomes {settings.kind} (docs/feedback.md), or change `kind`"
        )


def line_figures(lines: Sequence[Entry]) -> dict[str, int]:
    """How many lines say what: `lines`, and `vote.A`, `thumb.up`, `correction` and so on."""
    known = [entry.content for entry in lines if isinstance(entry.content, Line)]
    said = Counter(f"{line.kind}.{line.verdict}" if line.kind in VERDICTS else line.kind for line in known)
    return {"lines": len(lines), **dict(sorted(said.items()))}


def row_figures(pool: "Pool", summaries: "dict[str, SplitSummary]") -> dict[str, int]:
    """What became of the rows: `rows_in` = `kept` + every `dropped.<reason>`, and the rows of each split."""
    dropped: Counter[str] = Counter()
    for (_, reason), count in pool.tally.dropped.items():
        dropped[f"dropped.{reason}"] += count
    splits = {f"{split}.rows": len(summary.lengths) for split, summary in summaries.items()}
    return {"rows_in": sum(pool.tally.rows_in.values()), "kept": int(pool.keep.sum()), **dict(sorted(dropped.items())), **splits}


def _shown(line: Line) -> dict[str, Any]:
    """A line of MLflow's table, with the conversation as text."""
    first, second = [answer.text for answer in [*line.answers, Answer("")]][:2]
    return {
        "question": last_turn(line.messages),
        "answer_A": first,
        "answer_B": second,
        "kind": line.kind,
        "verdict": line.verdict,
        "earlier": conversation_text(line.messages[:-1]),
    }


@hydra.main(version_base=None, config_path="../conf", config_name="feedback")
@launched
def main(config: DictConfig) -> None:
    run(typed(config), entry_name("feedback"))


if __name__ == "__main__":
    register("feedback", FeedbackStage)
    main()
