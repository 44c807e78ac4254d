"""Converters of rows that say which answer is better: pairs, scored or ranked completions, verdicts, and labels good or bad."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from unicodedata import normalize

from plumbline.data.demonstrations import CONVERSATIONS, conversation
from plumbline.data.faults import RowFault
from plumbline.data.fields import RawRow, Record, listing, message, number, text, wrong_type
from plumbline.data.questions import completion_of, prompt_of, question_field, question_of, system_turn
from plumbline.data.schema import Source
from plumbline.rows import Message, assistant

REPLIES = ("completion", "response", "output", "answer")
"""The fields that may contain the answer that a label is about."""

_SPEAKER = re.compile(r"\n\n(Human|Assistant): ?")
_SCORE_FIELDS = ("overall_score", "score", "fine-grained_score", "reward")


# ---------------------------------------------------------------------------------------------------------------- pairs


def pair(row: RawRow, source: Source) -> Record:
    """Prompt, chosen and rejected as strings or messages. Answers that repeat the prompt (as in Tülu and UltraFeedback) lose it."""
    chosen, rejected = completion_of(row, "chosen"), completion_of(row, "rejected")
    key = question_field(row)
    prompt = prompt_of(row, key) if key else system_turn(row)
    if len(chosen) > 1 or len(rejected) > 1 or not key:
        turns = _shared_prompt(chosen[:-1], rejected[:-1], prompt if key else [])
        if key and _dialogue(turns) == _dialogue(
            question_of(row, key)
        ):  # the answers repeat the question, not what stands beside it
            turns = [*(turn for turn in turns if turn["role"] == "system"), *_dialogue(prompt)]
        prompt = _with_system_turn(turns, prompt)
    extra = {key: row[key] for key in ("score_chosen", "score_rejected") if isinstance(row.get(key), (int, float))}
    return Record("preference", {"prompt": prompt, "chosen": chosen[-1:], "rejected": rejected[-1:]}, extra)


def _dialogue(turns: list[Message]) -> list[Message]:
    return [turn for turn in turns if turn["role"] != "system"]


def _shared_prompt(chosen: list[Message], rejected: list[Message], stated: list[Message]) -> list[Message]:
    """The turns before both answers, or the stated prompt if there are none; RowFault if the two answers follow different turns."""
    if chosen != rejected:
        turn = next((i for i, turns in enumerate(zip(chosen, rejected, strict=False)) if turns[0] != turns[1]), -1)
        raise RowFault("prompts_differ", f"{len(chosen)} turns before chosen, {len(rejected)} before rejected; differ at {turn}")
    if not chosen and not stated:
        raise RowFault("no_prompt", "chosen and rejected have one turn each, and there is no prompt")
    return chosen or stated


def _with_system_turn(turns: list[Message], stated: list[Message]) -> list[Message]:
    """The turns before the answers, with the system turn that only the stated prompt has; RowFault if the two contradict."""
    system = [turn for turn in stated[:1] if turn["role"] == "system" and turn not in turns]
    if all(turn in turns for turn in stated[len(system) :]):
        return [*system, *turns]
    raise RowFault("prompts_differ", f"chosen does not answer the prompt {stated[-1]['content'][:40]!r}")


def hh(row: RawRow, source: Source) -> Record:
    """HH-RLHF: two transcripts that differ in their last turn; if they are that turn alone, what they answer is in another field."""
    chosen, rejected = transcript(text(row, "chosen")), transcript(text(row, "rejected"))
    key = question_field(row)
    if key and len(chosen) == len(rejected) == 1:
        prompt = prompt_of(row, key)
    else:
        prompt = [*system_turn(row), *_shared_prompt(chosen[:-1], rejected[:-1], [])]
    return Record("preference", {"prompt": prompt, "chosen": chosen[-1:], "rejected": rejected[-1:]})


def transcript(value: str) -> list[Message]:
    """An HH-RLHF transcript as messages, without the white space around turns, which belongs to the format."""
    parts = _SPEAKER.split(value if value.startswith("\n\n") else f"\n\n{value.lstrip()}")
    if parts[0].strip() or len(parts) < 3:
        raise RowFault("wrong_type", f"expected a transcript that starts with Human: or Assistant:, found {value[:40]!r}")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": content.strip()} for speaker, content in zip(parts[1::2], parts[2::2], strict=True)
    ]


# ------------------------------------------------------------------------------------------------------ scores and ranks


def ultrafeedback(row: RawRow, source: Source) -> Record:
    """The original UltraFeedback, with up to four scored completions; the best and the worst become the pair."""
    replies = listing(row, "completions")
    candidates = [(_score_in(reply), _text_in(reply)) for reply in replies]
    return _best_against_worst(prompt_of(row), candidates)


def _score_in(reply: Any) -> float:
    if not isinstance(reply, Mapping):
        raise wrong_type("completions", "objects with a score", reply)
    key = next((key for key in _SCORE_FIELDS if reply.get(key) is not None), None)
    if key is None:
        raise RowFault("missing_field", f"a completion without {_SCORE_FIELDS[0]}; it has {sorted(map(str, reply))[:8]}")
    return number(reply[key], key)


def _text_in(reply: RawRow) -> str:
    return text(reply, next((key for key in ("response", "text", "completion", "content") if key in reply), "response"))


def scored(row: RawRow, source: Source) -> Record:
    """Completions with a list of their scores; the best and the worst become the pair."""
    replies, scores = listing(row, "completions"), listing(row, "scores")
    if len(replies) != len(scores):
        raise RowFault("wrong_type", f"scores: expected one for each of {len(replies)} completions, found {len(scores)}")
    values = [number(score, "scores") for score in scores]
    return _best_against_worst(prompt_of(row), list(zip(values, (_reply_text(reply) for reply in replies), strict=True)))


def ranked(row: RawRow, source: Source) -> Record:
    """Completions from best to worst; the first and the last become the pair."""
    key = next((key for key in ("ranked", "ranking", "responses", "completions") if key in row), "ranked")
    replies = listing(row, key)
    return _best_against_worst(prompt_of(row), [(-float(rank), _reply_text(reply)) for rank, reply in enumerate(replies)])


def _reply_text(value: Any) -> str:
    if isinstance(value, Mapping) and "role" in value:
        return message(value)["content"]
    return text({"completion": value}, "completion")


def _best_against_worst(prompt: list[Message], candidates: list[tuple[float, str]]) -> Record:
    """The preference of the best over the worst of (score, completion); RowFault for fewer than two, or equal scores."""
    if len(candidates) < 2:
        raise RowFault("no_preference", f"expected at least two completions, found {len(candidates)}")
    best, worst = max(candidates, key=lambda reply: reply[0]), min(candidates, key=lambda reply: reply[0])
    if best[0] == worst[0]:
        raise RowFault("no_preference", f"all {len(candidates)} completions have the score {best[0]:g}")
    columns = {"prompt": prompt, "chosen": assistant(best[1]), "rejected": assistant(worst[1])}
    return Record("preference", columns, {"score_chosen": best[0], "score_rejected": worst[0]})


# -------------------------------------------------------------------------------------------------------------- verdicts


def comparison(row: RawRow, source: Source) -> Record:
    """Two outputs and which is better: 1 or 2 (LLMBar), a number between them (AlpacaEval); 0 and 1.5 are ties."""
    key = "label" if "label" in row else "preference"
    return by_votes(prompt_of(row), text(row, "output_1"), text(row, "output_2"), [row.get(key)], source)


def by_votes(prompt: list[Message], first: str, second: str, votes: Sequence[Any], source: Source) -> Record:
    """The preference of the majority of votes; RowFault for a tie."""
    counts = Counter(_vote(vote, source) for vote in votes)
    if counts[1] == counts[2]:
        listed = ", ".join(repr(vote) if vote not in ("", None) else "empty" for vote in votes)
        raise RowFault("no_preference", f"verdict {listed[:60]}")
    better, worse = (first, second) if counts[1] > counts[2] else (second, first)
    return Record("preference", {"prompt": prompt, "chosen": assistant(better), "rejected": assistant(worse)})


def _vote(vote: Any, source: Source) -> int:
    """1 or 2 for the better one, 0 for a tie or no verdict."""
    name = normalize("NFC", str(vote).strip())
    if source.positive or source.negative:
        return 1 if name in source.positive else 2 if name in source.negative else 0
    try:
        value = float(name)
    except ValueError:
        return 0
    return 1 if 0.5 < value < 1.5 else 2 if 1.5 < value < 2.5 else 0


# ---------------------------------------------------------------------------------------------------------------- labels


def kto(row: RawRow, source: Source) -> Record:
    """A completion, or the end of a conversation, with a label."""
    label = label_of(row.get("label", row.get("kto_tag")), source)
    if any(key in row for key in CONVERSATIONS):
        turns = conversation(row, source).columns["messages"]
        return Record("unpaired", {"prompt": turns[:-1], "completion": turns[-1:], "label": label})
    reply = next((key for key in REPLIES if key in row), "completion")
    return Record("unpaired", {"prompt": prompt_of(row), "completion": completion_of(row, reply), "label": label})


def label_of(value: Any, source: Source) -> bool:
    """Whether a label means good; RowFault if there is none, or it means neither good nor bad."""
    name = normalize("NFC", str(value).strip())
    if source.positive or source.negative:
        if name in source.positive or name in source.negative:
            return name in source.positive
    elif name.lower() in ("true", "1", "1.0"):
        return True
    elif name.lower() in ("false", "0", "0.0"):
        return False
    if value is None or name == "":
        raise RowFault("no_preference", "no label")
    raise RowFault("wrong_type", f"label: expected true or false, or a value of `positive` or `negative`, found {name[:40]!r}")
