"""A judge: rates, compares, ranks or checks completions, by questions that its members answer.

A member is a chat model, a person or a simulation; a judge with several members, or several samples of one, aggregates their
verdicts. Every verdict keeps its reply and where it came from.
"""

import hashlib
import json
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from typing import Any, NamedTuple, cast

from stages.judging.aggregation import UNPARSED, WINS, both_orders, majority, mean
from stages.judging.chat import CUT_OFF, ESTIMATED, Chat, Ledger, Request
from stages.judging.config import JudgeConfig
from stages.judging.templates import chosen_language, question, reminded, template_digest
from stages.judging.verdicts import (
    PASS,
    PASS_FAIL,
    Ranks,
    parse_choice,
    parse_ranking,
    parse_rating,
    parse_text,
    scores_from_ranks,
    swapped,
    win_probability,
)

Message = dict[str, str]
Prompts = Sequence[list[Message]]
Principle = Mapping[str, str]
"""A principle's text by language."""


class Verdict(NamedTuple):
    """One reply to one question, as read."""

    judge: str
    model: str
    template: str
    order: str
    """How the answers were shown: `ab` or `ba`, or their positions; empty for a single answer."""
    value: str | float | Ranks | None
    """As read, in terms of the order shown; None could not be read."""
    reply: str
    attempts: int = 1
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    probability: float | None = None
    """What it is worth to A in the order shown, P(A) + P(tie) / 2, where the endpoint gives log-probabilities."""


class Rating(NamedTuple):
    """A completion's score: the mean of its verdicts, None if none could be read."""

    score: float | None
    verdicts: list[Verdict]


class Comparison(NamedTuple):
    """Which of two answers is better."""

    outcome: str
    """`a`, `b`, `tie`, `inconsistent` (the verdict changed with the order) or `unparsed`."""
    verdicts: list[Verdict]
    opinions: dict[str, str]
    """The outcome by each member and sample, or person, alone."""
    probability: float | None = None
    """P(A) + P(tie) / 2 over both orders, where every verdict has one (RLAIF, arXiv:2309.00267, §2.1)."""

    @property
    def win(self) -> float | None:
        """What it is worth to A: 1, 0, or 0.5 for a tie or an inconsistent verdict; None unparsed."""
        return WINS.get(self.outcome)

    @property
    def score(self) -> float | None:
        """What it is worth to A when labels are made: by token probabilities where there are some, else `win`."""
        return self.win if self.probability is None or self.outcome == UNPARSED else self.probability


class Ranking(NamedTuple):
    """The answers' scores: each one's mean share of the others that it beats; None if no ranking could be read."""

    scores: list[float | None]
    verdicts: list[Verdict]
    flipped: int
    """Pairs of answers that changed places with the order shown."""
    compared: int


class Item(NamedTuple):
    """Answers to one prompt, in the order in which they are shown."""

    prompt: list[Message]
    responses: tuple[str, ...]
    order: str = ""
    principle: Principle | None = None
    critique: str = ""


class Judge(ABC):
    """What stages call."""

    name: str
    identity: str
    ledger: Ledger

    @abstractmethod
    def rate(self, prompts: Prompts, completions: Sequence[str]) -> list[Rating]:
        """Each completion's score on its own."""

    def announce(self, share: float) -> None:  # noqa: B027  judges without a progress bar need not know
        """Says which share of all questions will have been asked with the next ones."""

    @abstractmethod
    def finish(self) -> None:
        """Says that nothing more will be asked: progress bars close, a dry run prints what it would have cost and stops."""

    @abstractmethod
    def compare(
        self, prompts: Prompts, first: Sequence[str], second: Sequence[str], principles: Sequence[Principle] | None = None
    ) -> list[Comparison]:
        """Which of two answers is better; equal ones are a tie that nobody is asked about."""

    @abstractmethod
    def rank(self, prompts: Prompts, groups: Sequence[Sequence[str]]) -> list[Ranking]:
        """The order of all answers to a prompt."""

    @abstractmethod
    def check(self, prompts: Prompts, completions: Sequence[str], principles: Sequence[Principle]) -> list[Rating]:
        """Whether each completion keeps to a principle: the share of verdicts that say so."""


CRITERIA = ("rating", "pairwise", "ranking")
"""The templates that list criteria; the others go by a principle alone."""


class Member(NamedTuple):
    """One judge of a panel, or the only one."""

    name: str
    chat: Chat
    config: JudgeConfig


class AskingJudge(Judge):
    """A judge that asks its members through templates and reads their replies."""

    def __init__(self, name: str, members: Sequence[Member], config: JudgeConfig, seed: int) -> None:
        self.name = name
        self.config = config
        self._members = list(members)
        self._seed = seed
        described = [[member.name, member.chat.identity, _plain(member.config)] for member in members]
        self.identity = _digest([described, seed])

    @property
    def ledger(self) -> Ledger:  # type: ignore[override]
        """The sum over the members."""
        total = Ledger()
        for member in self._members:
            total = total.add(member.chat.ledger)
        return total

    def announce(self, share: float) -> None:
        for member in self._members:
            member.chat.share = share

    def finish(self) -> None:
        said = []
        for member in self._members:
            try:
                member.chat.finish()
            except SystemExit as end:  # a dry run: each member says what it would cost
                said.append(str(end))
        if said:
            raise SystemExit("\n".join(said))

    def rate(self, prompts: Prompts, completions: Sequence[str]) -> list[Rating]:
        items = [Item(prompt, (text,)) for prompt, text in zip(prompts, completions, strict=True)]
        return [
            Rating(mean([cast("float | None", verdict.value) for verdict in verdicts]), verdicts)
            for verdicts in self._ask("rating", items, parse_rating)
        ]

    def check(self, prompts: Prompts, completions: Sequence[str], principles: Sequence[Principle]) -> list[Rating]:
        items = [Item(p, (text,), "", principle) for p, text, principle in zip(prompts, completions, principles, strict=True)]
        asked = self._ask("principle", items, lambda reply: parse_choice(reply, PASS_FAIL))
        return [
            Rating(mean([None if v.value is None else float(v.value == PASS) for v in verdicts]), verdicts) for verdicts in asked
        ]

    def compare(
        self, prompts: Prompts, first: Sequence[str], second: Sequence[str], principles: Sequence[Principle] | None = None
    ) -> list[Comparison]:
        items: list[Item] = []
        shown: list[list[int]] = []  # the items of each comparison
        for index, (prompt, a, b) in enumerate(zip(prompts, first, second, strict=True)):
            principle = principles[index] if principles else None
            forth, back = Item(prompt, (a, b), "ab", principle), Item(prompt, (b, a), "ba", principle)
            if a == b:
                asked = []
            elif self.config.both_orders:
                asked = [forth, back]
            else:  # drawn for each comparison, so that a bias for a place favours neither policy
                asked = [random.Random(_digest([self._seed, prompt, a, b])).choice((forth, back))]
            shown.append([*range(len(items), len(items) + len(asked))])
            items += asked
        verdicts = self._ask("pairwise", items, parse_choice)
        return [_comparison([verdicts[place] for place in places]) for places in shown]

    def rank(self, prompts: Prompts, groups: Sequence[Sequence[str]]) -> list[Ranking]:
        items: list[Item] = []
        orders: list[list[int]] = []
        for prompt, group in zip(prompts, groups, strict=True):
            order = list(range(len(group)))
            random.Random(_digest([self._seed, prompt, list(group)])).shuffle(order)
            for shown in (order, order[::-1])[: 1 + self.config.both_orders]:
                items.append(Item(prompt, tuple(group[at] for at in shown), " ".join(map(str, shown))))
                orders.append(shown)
        asked = self._ask("ranking", items, None)
        step = 1 + self.config.both_orders
        return [_ranking(orders[at : at + step], asked[at : at + step]) for at in range(0, len(items), step)]

    def write(
        self,
        template: str,
        prompts: Prompts,
        responses: Sequence[str],
        principles: Sequence[Principle],
        critiques: Sequence[str] | None = None,
    ) -> list[Verdict]:
        """A `critique` or `revision` of each response by a principle: the first member's text, None where unreadable."""
        notes = critiques or [""] * len(responses)
        items = [
            Item(prompt, (response,), "", principle, note)
            for prompt, response, principle, note in zip(prompts, responses, principles, notes, strict=True)
        ]
        author = self._members[0]._replace(config=replace(self._members[0].config, samples=1))
        asked = self._ask(template, items, lambda reply: parse_text(reply, template), [author])
        return [verdicts[0] for verdicts in asked]

    def _ask(
        self,
        template: str,
        items: Sequence[Item],
        parse: Callable[[str], str | float | None] | None,
        members: Sequence[Member] | None = None,
    ) -> list[list[Verdict]]:
        """The verdicts on each item: by every member (or these) in turn, sample by sample."""
        results: list[list[Verdict]] = [[] for _ in items]
        for member in members or self._members:
            requests = [request for item in items for request in self._requests(member, template, item)]
            samples = member.config.samples
            reads: list[Callable[[str], Any]] = [
                parse or _ranking_parser(len(item.responses)) for item in items for _ in range(samples)
            ]
            languages = [chosen_language(member.config.language, item.prompt) for item in items for _ in range(samples)]
            verdicts = self._settle(member, template, requests, reads, languages)
            for position, verdict in enumerate(verdicts):
                item = items[position // samples]
                results[position // samples].append(verdict._replace(order=item.order))
        return results

    def _requests(self, member: Member, template: str, item: Item) -> Iterable[Request]:
        messages = question(
            template,
            item.prompt,
            item.responses,
            criteria=member.config.criteria if template in CRITERIA else (),
            principle=item.principle,
            critique=item.critique,
            reasoning=member.config.reasoning,
            language=member.config.language,
        )
        choices = {"pairwise": ("A", "B", "tie"), "principle": ("pass", "fail")}.get(template, ())
        form = "verdict" if choices else template
        for sample in range(member.config.samples):
            yield Request(messages, sample, 1, choices, form, template_digest(template))

    def _settle(
        self,
        member: Member,
        template: str,
        requests: Sequence[Request],
        reads: Sequence[Callable[[str], Any]],
        languages: Sequence[str],
    ) -> list[Verdict]:
        """Asks until each verdict can be read or the attempts are used up; equal questions are asked once."""
        first = {_request_key(request): position for position, request in reversed(list(enumerate(requests)))}
        open_questions = {position: requests[position] for position in sorted(first.values())}
        settled: dict[int, Verdict] = {}
        for attempt in range(1, member.config.attempts + 1):
            replies = member.chat.complete(list(open_questions.values()))
            unread: dict[int, Request] = {}
            for (position, request), reply in zip(open_questions.items(), replies, strict=True):
                # A reply that was cut off may end inside a quoted answer.
                whole = reply.finish not in CUT_OFF or (reply.finish == "length" and len(reply.text.split()) == 1)
                value = reads[position](reply.text) if whole else None
                probability = win_probability(reply.logprobs) if reply.logprobs and template == "pairwise" else None
                verdict = Verdict(
                    member.name, member.chat.model, request.version, "", value, reply.text, attempt,
                    reply.input_tokens, reply.output_tokens, reply.cost, probability,
                )  # fmt: skip
                settled[position] = _with_earlier_cost(verdict, settled.get(position))
                if value is None and reply.finish != ESTIMATED:
                    messages = reminded(requests[position].messages, reply.text, template, languages[position])
                    unread[position] = request._replace(messages=messages, attempt=attempt + 1)
            open_questions = unread
            if not open_questions:
                break
        return [settled[first[_request_key(request)]] for request in requests]


def _with_earlier_cost(verdict: Verdict, earlier: Verdict | None) -> Verdict:
    if earlier is None:
        return verdict
    return verdict._replace(
        input_tokens=verdict.input_tokens + earlier.input_tokens,
        output_tokens=verdict.output_tokens + earlier.output_tokens,
        cost=verdict.cost + earlier.cost,
    )


def _request_key(request: Request) -> tuple[str, int]:
    return request.messages[-1]["content"], request.sample


def _ranking_parser(count: int) -> Callable[[str], Ranks | None]:
    return lambda reply: parse_ranking(reply, count)


def rater_names(verdicts: Sequence[Verdict]) -> list[str]:
    """Who gave each verdict: the judge, with a number from its second sample on."""
    seen: Counter[str] = Counter()
    names = []
    for verdict in verdicts:
        seen[verdict.judge] += 1
        names.append(verdict.judge if seen[verdict.judge] == 1 else f"{verdict.judge} {seen[verdict.judge]}")
    return names


def _comparison(verdicts_by_order: Sequence[Sequence[Verdict]]) -> Comparison:
    """Joins the orders asked, opinion by opinion, and the opinions."""
    if not verdicts_by_order:
        return Comparison("tie", [], {})
    opinions: dict[str, str] = {}
    probabilities: list[float | None] = []
    for name, *verdicts in zip(rater_names(verdicts_by_order[0]), *verdicts_by_order, strict=True):
        read = [None if v.value is None else swapped(str(v.value)) if v.order == "ba" else str(v.value) for v in verdicts]
        opinions[name] = both_orders(read[0], read[-1])
        probabilities += [
            None if v.probability is None else 1 - v.probability if v.order == "ba" else v.probability for v in verdicts
        ]
    every = [verdict for verdicts in verdicts_by_order for verdict in verdicts]
    probability = None if None in probabilities else mean(probabilities)
    return Comparison(majority([*opinions.values()]), every, opinions, probability)


def _ranking(orders: Sequence[Sequence[int]], asked: Sequence[Sequence[Verdict]]) -> Ranking:
    """The mean score of each answer over orders, members and samples, and the pairs that changed places with the order."""
    count = len(orders[0])
    columns: list[list[float | None]] = [[] for _ in range(count)]
    flipped = compared = 0
    for opinions in zip(*asked, strict=True):
        by_order = []
        for order, verdict in zip(orders, opinions, strict=True):
            if verdict.value is None:
                continue
            shown = scores_from_ranks(cast("Ranks", verdict.value))
            scores = [shown[order.index(answer)] for answer in range(count)]
            by_order.append(scores)
            for answer, score in enumerate(scores):
                columns[answer].append(score)
        if len(by_order) == 2:
            forth, back = by_order
            pairs = [(i, j) for i in range(count) for j in range(i)]
            compared += len(pairs)
            flipped += sum((forth[i] - forth[j]) * (back[i] - back[j]) < 0 for i, j in pairs)
    verdicts = [verdict for opinions in asked for verdict in opinions]
    return Ranking([mean(column) for column in columns], verdicts, flipped, compared)


class GoldJudge(Judge):
    """The closed world's verifier: what AI labels are compared with, never what they should come from."""

    def __init__(self) -> None:
        self.name = "gold"
        self.identity = "gold"
        self.ledger = Ledger()

    def _gold(self, prompts: Prompts, completions: Iterable[str]) -> list[float]:
        from stages.world.verifier import verify

        return [verify(prompt, completion).gold for prompt, completion in zip(prompts, completions, strict=True)]

    def _verdict(self, order: str, value: str | float | Ranks) -> Verdict:
        return Verdict(self.name, "verifier", "", order, value, "")

    def finish(self) -> None:
        """Nothing is open."""

    def rate(self, prompts: Prompts, completions: Sequence[str]) -> list[Rating]:
        """On the scale of ratings: 1 to 10."""
        scores = [1 + 9 * gold for gold in self._gold(prompts, completions)]
        return [Rating(score, [self._verdict("", score)]) for score in scores]

    def check(self, prompts: Prompts, completions: Sequence[str], principles: Sequence[Principle]) -> list[Rating]:
        """Whether the gold score is at least one half, whatever the principle."""
        passed = [float(gold >= 0.5) for gold in self._gold(prompts, completions)]
        return [Rating(value, [self._verdict("", value)]) for value in passed]

    def compare(
        self, prompts: Prompts, first: Sequence[str], second: Sequence[str], principles: Sequence[Principle] | None = None
    ) -> list[Comparison]:
        outcomes = [
            "a" if a > b else "b" if a < b else "tie"
            for a, b in zip(self._gold(prompts, first), self._gold(prompts, second), strict=True)
        ]
        return [Comparison(outcome, [self._verdict("ab", outcome)], {self.name: outcome}) for outcome in outcomes]

    def rank(self, prompts: Prompts, groups: Sequence[Sequence[str]]) -> list[Ranking]:
        rankings = []
        for prompt, group in zip(prompts, groups, strict=True):
            gold = self._gold([prompt] * len(group), group)
            ranks = tuple(sum(o > own for o in gold) + (sum(o == own for o in gold) + 1) / 2 for own in gold)
            order = " ".join(map(str, range(len(group))))
            rankings.append(Ranking([*scores_from_ranks(ranks)], [self._verdict(order, ranks)], 0, 0))
        return rankings


def _plain(config: JudgeConfig) -> Mapping[str, Any]:
    return asdict(config) if is_dataclass(config) else config


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]
