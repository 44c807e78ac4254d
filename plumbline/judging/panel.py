"""A judge that puts questions to chat models and reads their replies. A panel has several members; any other judge has one.

Each member may be sampled several times. The verdicts of all members and samples are aggregated: ratings by their mean, comparisons by
majority, rankings by the mean of their scores.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

from plumbline.judging.aggregation import both_orders, majority, mean
from plumbline.judging.asking import CUT_OFF, ESTIMATED, Chat, Ledger, Reply, Request
from plumbline.judging.conversations import Conversations
from plumbline.judging.judge import Comparison, Judge, Principle, Prompts, Ranking, Rating, Verdict, rater_names
from plumbline.judging.judges import JudgeConfig
from plumbline.judging.store import content_key
from plumbline.judging.templates import chosen_language, question, reminded, template_digest
from plumbline.judging.verdicts import (
    PASS,
    PASS_FAIL,
    TIE,
    Ranks,
    parse_choice,
    parse_ranking,
    parse_rating,
    parse_text,
    scores_from_ranks,
    win_probability,
)
from plumbline.reasoning import without_reasoning
from plumbline.rows import Message

Parser = Callable[..., Any]
"""Reads a verdict's value from a reply, whose reasoning `marks` set apart; None if it states no verdict."""

CRITERIA = ("rating", "pairwise", "ranking")
"""The templates that list criteria; the others go by a principle alone."""

CHOICES = {"pairwise": ("A", "B", "tie"), "principle": ("pass", "fail")}
"""The verdicts that a template offers; other templates ask for a number, a ranking or a text."""


class Item(NamedTuple):
    """Answers to one prompt, in the order in which they are shown."""

    prompt: list[Message]
    responses: tuple[str, ...]
    order: str = ""
    principle: Principle | None = None
    critique: str = ""


class Query(NamedTuple):
    """A request, how its reply is read, and the language of its reminder."""

    request: Request
    parse: Parser
    language: str


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
        self.thinking_marks = config.thinking_marks
        self._members = list(members)
        self._seed = seed
        self._conversations = Conversations()

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

    def take_conversations(self) -> Conversations:
        taken, self._conversations = self._conversations, Conversations()
        return taken

    def close(self) -> None:
        for member in self._members:
            member.chat.close()

    def finish(self) -> None:
        estimates = []
        for member in self._members:
            try:
                member.chat.finish()
            except SystemExit as end:  # a dry run: each member says what it would cost
                estimates.append(str(end))
        if estimates:
            raise SystemExit("\n".join(estimates))

    def rate(self, prompts: Prompts, completions: Sequence[str]) -> list[Rating]:
        items = [Item(prompt, (self.answer(text),)) for prompt, text in zip(prompts, completions, strict=True)]
        return [
            Rating(mean([cast("float | None", verdict.value) for verdict in verdicts]), verdicts)
            for verdicts in self._ask("rating", items, parse_rating)
        ]

    def check(self, prompts: Prompts, completions: Sequence[str], principles: Sequence[Principle]) -> list[Rating]:
        answers = [self.answer(text) for text in completions]
        items = [Item(prompt, (text,), "", rule) for prompt, text, rule in zip(prompts, answers, principles, strict=True)]
        return [
            Rating(mean([None if v.value is None else float(v.value == PASS) for v in verdicts]), verdicts)
            for verdicts in self._ask("principle", items, partial(parse_choice, choices=PASS_FAIL))
        ]

    def compare(
        self, prompts: Prompts, first: Sequence[str], second: Sequence[str], principles: Sequence[Principle] | None = None
    ) -> list[Comparison]:
        shown = [
            self._orders(prompt, self.answer(a), self.answer(b), principles[index] if principles else None)
            for index, (prompt, a, b) in enumerate(zip(prompts, first, second, strict=True))
        ]
        verdicts = iter(self._ask("pairwise", [item for items in shown for item in items], parse_choice))
        return [_comparison([next(verdicts) for _ in items]) for items in shown]

    def _orders(self, prompt: list[Message], a: str, b: str, principle: Principle | None) -> list[Item]:
        """The orders in which two answers are shown; empty if they are equal."""
        if a == b:
            return []
        orders = [Item(prompt, (a, b), "ab", principle), Item(prompt, (b, a), "ba", principle)]
        if self.config.both_orders:
            return orders
        # Drawn for each comparison, so that a bias for a position favours neither policy.
        return [random.Random(content_key([self._seed, prompt, a, b])[:16]).choice(orders)]

    def rank(self, prompts: Prompts, groups: Sequence[Sequence[str]]) -> list[Ranking]:
        items: list[Item] = []
        orders: list[list[int]] = []
        for prompt, group in zip(prompts, groups, strict=True):
            answers, order = [self.answer(text) for text in group], list(range(len(group)))
            random.Random(content_key([self._seed, prompt, answers])[:16]).shuffle(order)
            for shown in (order, order[::-1])[: 1 + self.config.both_orders]:
                items.append(Item(prompt, tuple(answers[index] for index in shown), " ".join(map(str, shown))))
                orders.append(shown)
        verdicts = self._ask("ranking", items, None)
        step = 1 + self.config.both_orders
        return [_ranking(orders[start : start + step], verdicts[start : start + step]) for start in range(0, len(items), step)]

    def write(
        self,
        template: str,
        prompts: Prompts,
        responses: Sequence[str],
        principles: Sequence[Principle],
        critiques: Sequence[str] | None = None,
    ) -> list[Verdict]:
        """Has the first member write a `critique` or `revision` of each response by a principle; the value is None if unreadable."""
        notes = critiques or [""] * len(responses)
        items = [
            Item(prompt, (self.answer(response),), "", principle, note)
            for prompt, response, principle, note in zip(prompts, responses, principles, notes, strict=True)
        ]
        author = self._members[0]._replace(config=replace(self._members[0].config, samples=1))
        texts = self._ask(template, items, partial(parse_text, label=template), [author])
        return [verdicts[0] for verdicts in texts]

    def _ask(
        self, template: str, items: Sequence[Item], parse: Parser | None, members: Sequence[Member] | None = None
    ) -> list[list[Verdict]]:
        """The verdicts on each item, by every member (or by `members`) in turn, sample by sample."""
        results: list[list[Verdict]] = [[] for _ in items]
        for member in members or self._members:
            queries = [
                Query(
                    request,
                    parse or partial(parse_ranking, count=len(item.responses)),
                    chosen_language(member.config.language, item.prompt),
                )
                for item in items
                for request in self._requests(member, template, item)
            ]
            verdicts = iter(self._settle(member, template, queries))
            for item, result in zip(items, results, strict=True):
                result += [next(verdicts)._replace(order=item.order) for _ in range(member.config.samples)]
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
        choices = CHOICES.get(template, ())
        form = "verdict" if choices else template
        for sample in range(member.config.samples):
            yield Request(messages, sample, 1, choices, form, template_digest(template))

    def _settle(self, member: Member, template: str, queries: Sequence[Query]) -> list[Verdict]:
        """Asks until each verdict can be read or the attempts are used up; equal questions are asked once."""
        first: dict[tuple[str, int], int] = {}
        for position, query in enumerate(queries):
            first.setdefault(_request_key(query.request), position)
        waiting = {position: queries[position].request for position in first.values()}
        settled: dict[int, Verdict] = {}
        for _ in range(member.config.attempts):
            replies = member.chat.complete(list(waiting.values()))
            unread: dict[int, Request] = {}
            for (position, request), reply in zip(waiting.items(), replies, strict=True):
                query = queries[position]
                verdict = _verdict(member, template, request, query.parse, reply)
                settled[position] = _with_earlier_cost(verdict, settled.get(position))
                if verdict.value is None and reply.finish != ESTIMATED:
                    messages = reminded(query.request.messages, reply.text, template, query.language)
                    unread[position] = request._replace(messages=messages, attempt=request.attempt + 1)
            waiting = unread
            if not waiting:
                break
        for position, verdict in settled.items():
            self._conversations.add(queries[position].request.messages, verdict)
        return [settled[first[_request_key(query.request)]] for query in queries]


def _request_key(request: Request) -> tuple[str, int]:
    return request.messages[-1]["content"], request.sample


def _verdict(member: Member, template: str, request: Request, parse: Parser, reply: Reply) -> Verdict:
    """The verdict in a reply."""
    marks = member.config.thinking_marks
    # A reply that was cut off may end inside a quoted answer, unless it is a single word and nothing but that.
    word = len(reply.text.split()) == 1 and without_reasoning(reply.text, marks) == reply.text
    whole = reply.finish not in CUT_OFF or (reply.finish == "length" and word)
    return Verdict(
        judge=member.name,
        model=member.chat.model,
        template=request.version,
        order="",
        value=parse(reply.text, marks=marks) if whole else None,
        reply=reply.text,
        attempts=request.attempt,
        input_tokens=reply.input_tokens,
        output_tokens=reply.output_tokens,
        cost=reply.cost,
        probability=win_probability(reply.logprobs) if reply.logprobs and template == "pairwise" else None,
    )


def _with_earlier_cost(verdict: Verdict, earlier: Verdict | None) -> Verdict:
    if earlier is None:
        return verdict
    return verdict._replace(
        input_tokens=verdict.input_tokens + earlier.input_tokens,
        output_tokens=verdict.output_tokens + earlier.output_tokens,
        cost=verdict.cost + earlier.cost,
    )


def _comparison(verdicts_by_order: Sequence[Sequence[Verdict]]) -> Comparison:
    """Joins the orders shown into one opinion for each rater, and the raters' opinions into an outcome."""
    if not verdicts_by_order:
        return Comparison(TIE, [], {})
    opinions: dict[str, str] = {}
    probabilities: list[float | None] = []
    for rater, *verdicts in zip(rater_names(verdicts_by_order[0]), *verdicts_by_order, strict=True):
        turned = [verdict.in_order_ab() for verdict in verdicts]
        outcomes = [cast("str | None", verdict.value) for verdict in turned]
        opinions[rater] = both_orders(outcomes[0], outcomes[-1])
        probabilities += [verdict.probability for verdict in turned]
    every = [verdict for verdicts in verdicts_by_order for verdict in verdicts]
    probability = None if None in probabilities else mean(probabilities)
    return Comparison(majority([*opinions.values()]), every, opinions, probability)


def _ranking(orders: Sequence[Sequence[int]], verdicts_by_order: Sequence[Sequence[Verdict]]) -> Ranking:
    """The mean score of each answer over orders, members and samples, and the pairs whose order changed with the order shown."""
    count = len(orders[0])
    columns: list[list[float | None]] = [[] for _ in range(count)]
    flipped = compared = 0
    for verdicts in zip(*verdicts_by_order, strict=True):
        by_order = []
        for order, verdict in zip(orders, verdicts, strict=True):
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
    every = [verdict for verdicts in verdicts_by_order for verdict in verdicts]
    return Ranking([mean(column) for column in columns], every, flipped, compared)
