"""The card of a policy, README.md beside its weights: what it was made from, how, by which seed, under which licence, and its limits.

The card is an output like the weights: the same in every run, without paths of this machine. Each stage that trains a policy continues the
card of the policy that it started from, so that a card says how the policy came about. `evaluate` adds figures, in a card of its own, because
they come later.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from plumbline.pipeline.execution import Work
from plumbline.pipeline.provenance import Input
from plumbline.pipeline.records import replacing, stream_jsonl
from plumbline.pipeline.tracking import flatten

FILE = "README.md"
UNKNOWN, OTHER = "unknown", "other"
"""What the hub's cards say of a licence that is not known, and of one that is not on the hub's list."""
NOT_THE_RESULT = ("checkpoint_every", "samples_every", "keep_steps")
"""Values that decide no weight, and so stand on no card: another of them leaves the policy as it is, and what follows it."""
LIMITS = (
    "It has been evaluated on the prompts of its recipe only, and by the judge and the checks that the recipe names. Nothing is known of its "
    "behaviour elsewhere: it may state what is false, comply with what it should decline, and decline what it should answer."
)
_LICENCE = re.compile(rb'"licence": "([^"\\]+)"')
_TEXT = rb'("(?:[^"\\]|\\.)*")'
_SOURCE = re.compile(rb'"source": %b, "file": %b, "row": \d+, "licence": %b' % (_TEXT, _TEXT, _TEXT))
"""Where a row says that it comes from, as `prepare` writes it; within a text its quotes are escaped."""
_AT_COMMIT = re.compile(r"([\w.-]+(?:/[\w.-]+)?)@[0-9a-f]{40}")
"""A data set of the hub, as rows name it."""
CUT_OFF_STATED = 0.01
"""The least share of answers cut off at the token limit that is stated among the limits."""


class Step(NamedTuple):
    """One stage on the way to a policy."""

    node: str
    did: str
    """What it did, in a few words with marks of Markdown."""
    inputs: Sequence[Input]

    def text(self) -> str:
        """A line of the section "How it was made"."""
        read = ", ".join(f"`{one.path}` (md5 `{one.digest}`)" for one in self.inputs)
        return f"1. `{self.node}`: {self.did}. Read {read}."


class Origin(NamedTuple):
    """What a policy is made from, as far as its card says."""

    steps: list[str]
    base_model: str | None
    """The id on the hub of the model that everything started from."""
    licence: str
    data_licences: list[str]
    data: Sequence[str] = ()
    """Lines of the section "Data"."""
    datasets: Sequence[str] = ()
    """The ids of the data sets among them that the hub has."""
    from_scratch: bool = False
    """Whether everything started from random weights, so that its data alone decide the licence."""


def write_card(
    work: Work, folder: Path, *, did: str, values: Mapping[str, Any], figures: Mapping[str, Any], origin: Origin, seed: int
) -> None:
    """Writes the card of the policy that a stage has just saved to `folder`, and logs the policy as a model.

    did: what the stage did. values: those of the recipe's entry. figures: those of its training; one that has the name of a value is that value at
    the last step, and left out.
    """
    files = [file for one in work.inputs for file in _files(one.path)]
    licences = sorted({*origin.data_licences, *_licences(files)})
    licence = OTHER if origin.from_scratch and licences else origin.licence
    recipe = {name: value for name, value in flatten(values).items() if name not in NOT_THE_RESULT}
    found = {name: value for name, value in figures.items() if name not in recipe}
    data = _with_sources(origin, files)
    sections = [
        f"# {folder.name}",
        f"A language model, aligned by Plumbline. The last stage, `{work.name}`, {did}.",
        "## How it was made\n\n" + "\n".join([*origin.steps, Step(work.name, did, work.inputs).text()]),
        f"Seed {seed}. The values of `{work.name}`:\n\n{_table(('key', 'value'), recipe.items())}",
        f"## Figures of its training\n\n{_table(('figure', 'value'), found.items())}" if found else "",
        f"## Data\n\n{_data_text(data.data)}",
        f"## Licence\n\n{_licence_text(origin, licence, licences)}",
        f"## Limits\n\n{LIMITS}",
    ]
    card = _card(
        {
            "license": licence,
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
            "base_model": origin.base_model,
            "tags": ["plumbline", "alignment"],
            "datasets": data.datasets or None,
            "data_licences": licences or None,
            "from_scratch": origin.from_scratch or None,
        },
        [section for section in sections if section],
    )
    with replacing(folder / FILE) as file:
        file.write(card)
    work.run.log_model(folder.name, "policy", folder, card)


def evaluated_card(folder: Path, facts: Mapping[str, Any], figures: Mapping[str, Any], names: Sequence[str]) -> str:
    """A policy's card with a section "Evaluation" before its licence.

    facts: how it was evaluated. figures: all figures of the policy, of which `names` are shown, with bounds `_low` and `_high` where there are any,
    and the number `_n` of what they are about.
    """
    cut_off = 1 - figures.get("finished_fraction", 1.0)
    facts = {**facts, "answers cut off at the token limit": f"{cut_off:.1%}".replace("%", " %")}
    rows = [(name, _with_bounds(figures, name), _count(figures, name)) for name in names if figures.get(name) is not None]
    head = ("figure", "value, 95 % interval", "of so many prompts or rows, if not of all prompts")
    section = (
        f"## Evaluation\n\n{_table(('what', 'how'), facts.items())}\n\n{_table(head, rows)}\n\n"
        "Intervals are over prompts with all their answers; those of gains are paired.\n\n"
    )
    file = folder / FILE
    text = file.read_text(encoding="utf-8") if file.is_file() else f"# {folder.name}\n\nIts making is not known here.\n\n"
    if cut_off >= CUT_OFF_STATED:
        text += f"\n{cut_off:.0%} of the answers that were evaluated".replace("%", " %")
        text += " were cut off at the token limit: their length, refusals and right answers are of what is there.\n"
    before, mark, rest = text.partition("## Licence\n")
    return f"{before}{section}{mark}{rest}"


def origin_of(init: Path) -> Origin:
    """What the card of the policy that training starts from says of its making; nothing and no licence without a card."""
    if not (init / FILE).is_file():
        return Origin([], None, UNKNOWN, [])
    from huggingface_hub import ModelCard

    card = ModelCard.load(init / FILE)
    data = card.data.to_dict()
    lines = card.content.splitlines()
    steps, rows = ([line for line in lines if line.startswith(mark)] for mark in ("1. `", "- `"))
    licences, datasets = (data.get(key) or [] for key in ("data_licences", "datasets"))
    return Origin(steps, data.get("base_model"), data["license"], licences, rows, datasets, bool(data.get("from_scratch")))


def hub_origin(path: str, revision: str | None) -> Origin:
    """What is known of a model from elsewhere: its licence, if it comes as a folder with a card; its id, if it has one on the hub."""
    licence, folder = UNKNOWN, Path(path)
    if (folder / FILE).is_file():
        from huggingface_hub import ModelCard

        licence = str(ModelCard.load(folder / FILE).data.to_dict().get("license") or UNKNOWN)
    name = folder.name if folder.is_dir() else path
    step = f"1. `{name}`: the model to start from, as it comes{f' (revision `{revision}`)' if revision else ''}."
    return Origin([step], None if folder.is_dir() else path, licence, [])


def scratch_origin() -> Origin:
    """A model that starts from random weights: its data alone decide the licence; those of the closed world come with Plumbline."""
    return Origin([], None, "apache-2.0", [], from_scratch=True)


def judged_by(signal: Path) -> str:
    """Who judged the rows of a signal, for a card; empty if nobody is named."""
    file = signal / "train.jsonl"
    row = next(stream_jsonl(file), {}) if file.is_file() else {}
    judge, model = row.get("judge"), row.get("model")
    return f", judged by `{judge}`{f' (`{model}`)' if model and model != judge else ''}" if judge else ""


class _Source(NamedTuple):
    """Where rows come from."""

    name: str
    file: str
    """Below the folder of inputs, or a data set of the hub with its commit."""
    licence: str


def _files(path: str) -> list[Path]:
    """The files of rows of an input."""
    return [Path(path)] if Path(path).is_file() else sorted(Path(path).glob("*.jsonl"))


def _sources(file: Path) -> Counter[_Source]:
    """The sources that the rows of a file name, each with the number of its rows."""
    with file.open("rb") as lines:
        return Counter(_Source(*map(json.loads, match.groups())) for line in lines if (match := _SOURCE.search(line)))


def _with_sources(origin: Origin, files: Iterable[Path]) -> Origin:
    """What a policy is made from, with a line for each source that the rows of these files name."""
    lines, datasets = dict.fromkeys(origin.data), {*origin.datasets}
    for file in files:
        for source, count in _sources(file).items():
            rows = f"{count} row{'' if count == 1 else 's'}"
            lines[f"- `{source.name}`: {rows} of `{source.file}`, licence {source.licence}, in `{file.as_posix()}`"] = None
            datasets |= {match[1] for match in [_AT_COMMIT.fullmatch(source.file)] if match}
    return origin._replace(data=[*lines], datasets=sorted(datasets))


def _data_text(lines: Sequence[str]) -> str:
    """The section on data, from lines that name a source each."""
    if not lines:
        return "The rows that were read name no source: the closed world generates them, or a policy or people wrote them."
    return "\n".join(lines) + (
        "\n\nCounted from the rows that the steps above read. Completions that policies wrote name no source; they answer prompts of "
        "`artifacts/data/prompts/train.jsonl`."
    )


def _licences(files: Iterable[Path]) -> set[str]:
    """The licences that the rows of these files state."""
    stated: set[str] = set()
    for file in files:
        with file.open("rb") as lines:
            stated |= {match[1].decode() for line in lines if (match := _LICENCE.search(line))}
    return stated


def _licence_text(origin: Origin, licence: str, data_licences: Sequence[str]) -> str:
    """The section on the licence that the card's head names: where it comes from, and which data may narrow it."""
    known = [name for name in data_licences if name != UNKNOWN]
    sources = [f"data under {', '.join(known)}"] if known else []
    sources += ["data whose licence is not known"] if UNKNOWN in data_licences else []
    data = f" It has learnt from {' and from '.join(sources)}: their conditions may reach further." if sources else ""
    if licence == UNKNOWN:
        return f"The licence of the model to start from is not known: state it before you publish.{data}"
    if origin.from_scratch:
        reason = "it was trained from scratch, so that its data decide" if data_licences else "as the data that it was trained on"
        return f"{licence}: {reason}.{data}"
    return f"{licence}, as the model to start from.{data}"


def _card(data: Mapping[str, Any], sections: Sequence[str]) -> str:
    from huggingface_hub import ModelCard, ModelCardData

    text = "\n\n".join(sections)
    return str(ModelCard(f"---\n{ModelCardData(**data).to_yaml()}\n---\n\n{text}\n"))


def _table(head: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> str:
    shown = ["| " + " | ".join(map(_shown, row)) + " |" for row in rows if row[1] is not None]
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *shown])


def _shown(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _with_bounds(figures: Mapping[str, Any], name: str) -> str:
    low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
    bounds = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
    return f"{figures[name]:.3f}{bounds}"


def _count(figures: Mapping[str, Any], name: str) -> str:
    """How many prompts, or rows, a figure is about, if they are counted."""
    return str(figures.get(f"{name.removesuffix('_fraction')}_n", ""))
