"""What came of the recipe, in a headline, a sentence, and a few points: what every form of the report begins with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from plumbline.evaluation.comparisons import MEASURES, Comparisons
from plumbline.evaluation.figures import QUALITY
from plumbline.report import sentences, tables
from plumbline.report.material import Material, learns_from_gold, shown_nodes
from plumbline.report.tables import Figures

MEASURED = {
    "harmful_fraction": "harmful requests complied with",
    "over_refusal_fraction": "harmless requests refused",
    "accuracy": "right answers",
    "instructions_followed": "instructions followed",
    "preference_accuracy": "held-out preferences",
    "perplexity": "perplexity of held-out demonstrations",
}
"""What is measured where there is neither gold nor a judge: figure → what the story calls it."""

CHANGED = {
    "harmful": {"better": "complies with fewer harmful requests", "worse": "complies with more harmful requests"},
    "verifiable": {"better": "gives more right answers", "worse": "gives fewer right answers"},
    "followed": {"better": "follows more instructions", "worse": "follows fewer instructions"},
    "over_refused": {"better": "refuses fewer harmless requests", "worse": "refuses more harmless requests"},
}
"""What a policy does better or worse than the opponent, where nothing sums up how good it is, by the measure of the comparisons."""

FIGURES = {"gold": "gold", "win": "win_rate"}
"""The figure by which policies are ordered, by the measure that sums up an answer."""

FEW_PROMPTS = 100
"""Below this number of prompts the story says how many there were."""


class Point(NamedTuple):
    """A point of the story: what it is about, and sentences."""

    about: str
    text: str


class Story(NamedTuple):
    """The headline, the policies that it names as the best, and what is to be said of the first."""

    headline: str
    lede: str
    points: list[Point]
    subject: str | None
    """The policy of whom lede and points tell."""
    leaders: list[str]
    gold_trained: list[str]
    """Policies that learned from the verifier, so gold is not an independent measure of them."""


def tell(material: Material) -> Story:
    """The story of a recipe's policies."""
    trained = [
        policy for policy in material.policies if learns_from_gold(material.stage_figures, shown_nodes(material.recipe), policy)
    ]
    lead = leaders(material, trained)
    subject = lead[0] if lead else _most_changed(material)
    points = _points(material, subject, lead) if subject else []
    return Story(_headline(material, lead, subject), _lede(material, lead, subject), points, subject, lead, trained)


def leaders(material: Material, gold_trained: Sequence[str]) -> list[str]:
    """The best policy, then those that cannot be told apart from it; empty if none beats the opponent.

    By gold, or by win rate if there is no gold, and by the comparison of every two policies. A policy that was trained on gold cannot lead by it.
    """
    if not (overall := material.overall):
        return []
    excluded = gold_trained if overall.measure == "gold" else []
    better = [policy for policy in _better(material, overall) if policy not in excluded]
    ranked = sorted(better, key=lambda policy: -material.figures[policy][FIGURES[overall.measure]])
    return ranked[:1] + [policy for policy in ranked[1:] if not overall.are_distinguishable(ranked[0], policy)]


def _better(material: Material, comparisons: Comparisons) -> list[str]:
    """The policies that are better than the opponent by one measure."""
    return [policy for policy in material.policies if comparisons.verdict(policy, material.against) == "better"]


def changes(material: Material, policy: str) -> dict[str, str]:
    """What clearly changed from the opponent, as the table of comparisons has it: measure → `better` or `worse`."""
    verdicts = material.verdicts(policy)
    return {measure: verdict for measure in CHANGED if (verdict := verdicts.get(measure))}


def _most_changed(material: Material) -> str | None:
    """The policy to tell of if none leads: the one that improved most figures and worsened fewest; None if nothing is measured."""
    others = [policy for policy in material.policies if policy != material.against]
    if not others or not tables.measured(material.figures, *QUALITY):
        return None
    if overall := material.overall:
        return max(others, key=lambda policy: material.figures[policy].get(FIGURES[overall.measure]) or 0.0)

    def balance(policy: str) -> tuple[bool, int, float]:
        verdicts = [*changes(material, policy).values()]
        return bool(verdicts), verdicts.count("better") - verdicts.count("worse"), _improvement(material, policy)

    return max(others, key=balance)


def _improvement(material: Material, policy: str) -> float:
    """The sum of all changes for the better less those for the worse, to order policies that changed by equally many measures."""
    pairs = [pair for one in material.comparisons if one.measure in CHANGED for pair in one.pairs]
    with_opponent = [pair for pair in pairs if {pair.policy, pair.other} == {policy, material.against}]
    return sum(abs(pair.difference.value) * (1 if pair.policy == policy else -1) for pair in with_opponent)


def _headline(material: Material, lead: Sequence[str], subject: str | None) -> str:
    count = len(material.policies)
    if len(lead) > 1:
        return f"{sentences.enumeration(lead)} lead among {count} policies"
    if lead:
        unsafe = [tables.language_name(code) for code in sentences.unsafe_languages(material.figures[lead[0]])]
        return f"{lead[0]} is the best of {count} policies" + (f", but not safe in {sentences.listed(unsafe)}" if unsafe else "")
    if overall := material.overall:
        only = _better(material, overall)  # none of which may lead
        return (
            f"Only policies trained on the verifier clearly beat {material.against}"
            if only
            else f"No policy clearly beats {material.against}"
        )
    if subject is None:
        return f"{count} policies compared" if count > 1 else f"{material.policies[0]}, and nothing to compare it with"
    return _trade(material, subject)


def _trade(material: Material, policy: str) -> str:
    """What a policy does better and worse than the opponent, as a headline."""
    changed = changes(material, policy)
    better, worse = (
        [CHANGED[measure][verdict] for measure, verdict in changed.items() if verdict == wanted] for wanted in ("better", "worse")
    )
    if not changed:
        return f"No policy clearly differs from {material.against}"
    parts = [sentences.enumeration(words) for words in (better, worse) if words]
    return f"{policy} {', but '.join(parts)} than {material.against}"


def _lede(material: Material, lead: Sequence[str], subject: str | None) -> str:
    """The sentence below the headline."""
    if not tables.measured(material.figures, *QUALITY):
        return "The data has no verifier and no judge was asked, so nothing here measures quality. The figures below only describe the policies."
    if subject is None:
        return "A recipe with a second policy in evaluate.policies says which of the two is better."
    if not (overall := material.overall):
        names = [name for key, name in MEASURED.items() if tables.measured(material.figures, key)]
        return (
            f"Nothing sums up how good an answer is: the data has no verifier of whole answers and {_why_no_verdicts(material)}. "
            + (f"What is measured: {sentences.listed(names)}." if names else "")
        ).rstrip()
    first = sentences.reading(subject, material.figures, material.against, material.verdicts(subject))[0]
    name = {"gold": "gold", "win": "win rate"}[overall.measure]
    return first + (f" {sentences.enumeration(lead[1:])} cannot be told apart from it by {name}." if len(lead) > 1 else "")


def _why_no_verdicts(material: Material) -> str:
    """Why the judge does not compare all policies."""
    others = [policy for policy in material.policies if policy != material.against]
    unread = [policy for policy in others if material.figures[policy].get("win_rate") is None]
    if not unread or unread == others:
        return "no judge was asked"
    return f"none of the judge’s verdicts on {sentences.enumeration(unread)} could be read"


def _points(material: Material, subject: str, lead: Sequence[str]) -> list[Point]:
    """What else is to be said of the policy that the headline is about, and how far to trust it."""
    figures, base, against = material.figures[subject], material.figures[material.against], material.against
    told = sentences.by_subject(subject, material.figures, against, material.verdicts(subject))
    if material.overall:
        told["Gain"] = told["Gain"][1:]  # which the lede says
    others = [text for policy in lead[1:] if (text := sentences.language_sentence(policy, material.figures[policy]))]
    told["Safety"] = [*told["Safety"], *others]
    told["Trust"] = [*told["Trust"], *_doubts(material, figures, base)]
    ahead = [Point("Ahead", _ahead(material))] if not material.overall and len(material.policies) > 2 else []
    return [point for point in (*ahead, *(Point(about, " ".join(texts)) for about, texts in told.items())) if point.text]


def _ahead(material: Material) -> str:
    """Who is best by each measure, where no single one says it."""
    best = {one.measure: one.ahead for one in material.decisive}
    return " ".join(
        f"By {MEASURES[measure].name}: {policies[0]}"
        + (f"; {sentences.enumeration(policies[1:])} cannot be told apart from it." if len(policies) > 1 else ".")
        for measure, policies in best.items()
        if policies
    )


def _doubts(material: Material, figures: Figures, base: Figures) -> list[str]:
    """What speaks against believing the result."""
    doubts = []
    section = material.recipe["evaluate"]
    for who, key in (("judge", "judge_agreement"), ("reward", "reward_agreement")):
        if figures.get(key) is not None:
            rate = f"{tables.show(figures[key], 'percent')} {tables.show_bounds(figures, key, 'percent')}"
            doubts.append(f"The {who} ({section[who]}) orders two answers rightly in {rate} of pairs.")
    if tied := _tied(material.decisive):
        doubts.append(tied)
    if cut_off := sentences.cut_off_sentence(material.figures, section["max_new_tokens"]):
        doubts.append(cut_off)
    few = (
        f"Only {base['n']} prompt{'s were' if base['n'] != 1 else ' was'} answered, and each"
        if base["n"] < FEW_PROMPTS
        else "Each"
    )
    doubts.append(f"{few} policy was trained once: another seed may give another result.")
    return doubts


def _tied(measures: Sequence[Comparisons]) -> str:
    """How many pairs cannot be told apart by each measure; empty if all can."""
    tied = {one.measure: sum(not pair.differs for pair in one.pairs) for one in measures}
    names = [MEASURES[measure].name for measure, count in tied.items() if count]
    if not names:
        return ""
    if all(len(one.pairs) == 1 for one in measures):
        return f"The two policies cannot be told apart by {sentences.enumeration(names)}."
    counts = [f"{tied[one.measure]} of {len(one.pairs)}" for one in measures if tied[one.measure]]
    first, *others = (f"{count} by {name}" for count, name in zip(counts, names, strict=True))
    return f"{sentences.enumeration([first.replace(' by', ' pairs of policies cannot be told apart by', 1), *others])}."
