"""The card of a policy, README.md beside its weights: what it was made from, how, by which seed, under which licence, and its limits.

The card is an output like the weights: the same in every run, without paths of this machine. Each stage that trains a policy continues the
card of the policy that it started from, so that a card says how the policy came about. `evaluate` adds figures, in a card of its own, because
they come later.
"""

import re
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
    from_scratch: bool = False
    """Whether everything started from random weights, so that its data alone decide the licence."""


def write_card(
    work: Work, folder: Path, *, did: str, values: Mapping[str, Any], figures: Mapping[str, Any], origin: Origin, seed: int
) -> None:
    """Writes the card of the policy that a stage has just saved to `folder`, and logs the policy as a model.

    did: what the stage did. values: those of the recipe's entry. figures: those of its training.
    """
    licences = sorted({*origin.data_licences, *_licences(one.path for one in work.inputs)})
    licence = OTHER if origin.from_scratch and licences else origin.licence
    recipe = [(name, value) for name, value in flatten(values).items() if name not in NOT_THE_RESULT]
    sections = [
        f"# {folder.name}",
        f"A language model, aligned by Plumbline. The last stage, `{work.name}`, {did}.",
        "## How it was made\n\n" + "\n".join([*origin.steps, Step(work.name, did, work.inputs).text()]),
        f"Seed {seed}. The values of `{work.name}`:\n\n{_table(('key', 'value'), recipe)}",
        f"## Figures of its training\n\n{_table(('figure', 'value'), figures.items())}" if figures else "",
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

    facts: how it was evaluated. figures: all figures of the policy, of which `names` are shown, with bounds `_low` and `_high` where there are any.
    """
    rows = [(name, _with_bounds(figures, name)) for name in names if figures.get(name) is not None]
    section = (
        f"## Evaluation\n\n{_table(('what', 'how'), facts.items())}\n\n{_table(('figure', 'value, 95 % interval'), rows)}\n\n"
        "Intervals are over prompts with all their answers; those of gains are paired.\n\n"
    )
    file = folder / FILE
    text = file.read_text(encoding="utf-8") if file.is_file() else f"# {folder.name}\n\nIts making is not known here.\n\n"
    head, mark, rest = text.partition("## Licence\n")
    return f"{head}{section}{mark}{rest}"


def origin_of(init: Path) -> Origin:
    """What the card of the policy that training starts from says of its making; nothing and no licence without a card."""
    if not (init / FILE).is_file():
        return Origin([], None, UNKNOWN, [])
    from huggingface_hub import ModelCard

    card = ModelCard.load(init / FILE)
    data = card.data.to_dict()
    steps = [line for line in card.content.splitlines() if line.startswith("1. `")]
    return Origin(steps, data.get("base_model"), data["license"], data.get("data_licences") or [], bool(data.get("from_scratch")))


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


def _licences(paths: Iterable[str]) -> set[str]:
    """The licences that the rows of these inputs state."""
    files = (file for path in paths for file in ([Path(path)] if Path(path).is_file() else sorted(Path(path).glob("*.jsonl"))))
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


def _table(head: tuple[str, str], rows: Iterable[tuple[str, Any]]) -> str:
    shown = [f"| {name} | {_shown(value)} |" for name, value in rows if value is not None]
    return "\n".join([f"| {head[0]} | {head[1]} |", "|---|---|", *shown])


def _shown(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _with_bounds(figures: Mapping[str, Any], name: str) -> str:
    low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
    bounds = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
    return f"{figures[name]:.3f}{bounds}"
