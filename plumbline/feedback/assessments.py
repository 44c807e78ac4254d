"""Thumbs and corrected answers from MLflow's review pages, as lines of feedback.

MLflow records a call of a model as a trace, and what people say of it as assessments of that trace: a feedback whose value is yes or no, or an
expectation whose value is the answer that should have been given. Only people's own assessments count, of traces whose input is a conversation
and whose output is an answer. A trace of a judge, whose span type is EVALUATOR or whose output has a `verdict`, is left out: what it says is not
a policy's answer.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from plumbline.data.faults import RowFault
from plumbline.data.fields import is_messages, messages
from plumbline.feedback.lines import CORRECTION, DOWN, THUMB, UP, Answer, Line
from plumbline.rows import Message

if TYPE_CHECKING:
    from mlflow.entities import Assessment, Span, Trace

JUDGES = "EVALUATOR"
"""The type of a trace's root span that marks a judge's verdict, in MLflow's words."""

PAGE_TRACES = 100
POLICY_TAG, WEIGHTS_TAG = "policy", "weights"
"""Tags of a trace that name the policy and the digest of its folder, where whoever recorded it knew them."""

_GOOD = {"true", "yes", "up", "good", "pass", "1", "1.0"}
_BAD = {"false", "no", "down", "bad", "fail", "0", "0.0"}
_QUESTIONS = ("messages", "prompt", "question", "query", "input", "inputs")
_REPLIES = ("content", "completion", "answer", "response", "output", "outputs", "text")


class Brought(NamedTuple):
    """What people said in MLflow."""

    lines: list[Line]
    traces: int
    """How many traces there are."""
    left_out: Counter[str]
    """Assessments that became no line, by the reason."""


def traces(uri: str, condition: str | None = None) -> "Iterator[Trace]":
    """Every trace of a tracking store, those of all its experiments; `condition` is a filter string of MLflow's `search_traces`.

    Raises:
        MlflowException: the store cannot be read, or the condition is not one.
    """
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    for experiment in client.search_experiments():
        token = None
        while True:
            page = client.search_traces(
                locations=[experiment.experiment_id], filter_string=condition, max_results=PAGE_TRACES, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                break


def bring(recorded: "Iterable[Trace]") -> Brought:
    """The lines that people's assessments of these traces say."""
    lines, count, left_out = [], 0, Counter[str]()
    for trace in recorded:
        count += 1
        for assessment in trace.info.assessments or ():
            try:
                lines.append(line_of(trace, assessment))
            except RowFault as fault:
                left_out[fault.fault.detail] += 1
    return Brought(sorted(lines, key=lambda line: (line.time, line.id)), count, left_out)


def line_of(trace: "Trace", assessment: "Assessment") -> Line:
    """An assessment as a line; a RowFault with the reason, in the words of a count, if it cannot be one."""
    if assessment.valid is False:
        raise RowFault("wrong_type", "taken back or replaced")
    if assessment.source.source_type != "HUMAN":
        raise RowFault("wrong_type", "not said by a person")
    root = next((span for span in trace.data.spans if span.parent_id is None), None)
    if root is None:
        raise RowFault("wrong_type", "of a trace without spans")
    if root.span_type == JUDGES or (isinstance(root.outputs, Mapping) and "verdict" in root.outputs):
        raise RowFault("wrong_type", "of a judge's verdict")
    kind, verdict = _verdict(assessment)
    tags = {**trace.info.trace_metadata, **trace.info.tags}
    answer = Answer(_answer(_recorded(trace, root, "outputs")), tags.get(POLICY_TAG), tags.get(WEIGHTS_TAG))
    said = datetime.fromtimestamp((assessment.last_update_time_ms or 0) / 1000, UTC).isoformat(timespec="seconds")
    # the one who says it again, or overrides it, changes their mind: another assessment of the same name on the same trace
    about = f"{trace.info.trace_id}-{assessment.name}-{assessment.source.source_id}"
    line = Line(about, kind, said, _conversation(_recorded(trace, root, "inputs")), [answer], verdict, source="mlflow")
    try:
        line.json()
    except ValueError:
        raise RowFault("bad_text", "of a text with half of a character") from None
    return line


def _verdict(assessment: "Assessment") -> tuple[str, str]:
    """The kind of line and what it says."""
    if (expectation := assessment.expectation) is not None:
        if isinstance(expectation.value, str) and expectation.value.strip():
            return CORRECTION, expectation.value.strip()
        raise RowFault("wrong_type", "an expectation that is not a text")
    value = str(getattr(assessment.feedback, "value", None)).strip().lower()
    if value not in _GOOD | _BAD:
        raise RowFault("wrong_type", "neither yes nor no")
    return THUMB, UP if value in _GOOD else DOWN


def _recorded(trace: "Trace", span: "Span", what: str) -> Any:
    """A span's `inputs` or `outputs` as they were recorded.

    MLflow's database opens a text that is JSON, and gives back what it says. Only the trace's metadata keep what MLflow's client wrote, which begins
    with a quotation mark if it was a text. They keep 250 characters: of a longer text that came through a server, the spaces between JSON's
    values are lost.
    """
    stored = str(span.to_dict()["attributes"].get(f"mlflow.span{what.capitalize()}", ""))
    written = trace.info.trace_metadata.get(f"mlflow.trace{what.capitalize()}", "")
    is_whole = not written.endswith("...")
    if not written.startswith('"') or stored.startswith(written.removesuffix("...")):
        return getattr(span, what)
    return json.loads(written) if is_whole else stored


def _conversation(value: Any) -> list[Message]:
    """The messages in a trace's input: a list of them, a text, or either under one of the usual names."""
    while isinstance(value, Mapping) and not is_messages(value):
        key = next((key for key in _QUESTIONS if value.get(key)), None)
        if key is None:
            break
        value = value[key]
    if isinstance(value, str) and value.strip():
        return [{"role": "user", "content": value}]
    if not value or not is_messages(value):
        raise RowFault("wrong_type", "of a trace whose input is not a conversation")
    try:
        return [{"role": turn["role"], "content": turn["content"]} for turn in messages(value, "messages")]
    except RowFault:
        raise RowFault("wrong_type", "of a trace whose input is not a conversation") from None


def _answer(value: Any) -> str:
    """The text in a trace's output: itself, a message, the last message of several, or OpenAI's choices. The parts of a message are joined."""
    for _ in range(7):  # as deep as choices → first → message → content → parts goes, and one to spare
        if isinstance(value, str) and value.strip():
            return value
        if _are_parts(value):
            value = "".join(_part_text(part) for part in value)
        elif isinstance(value, list) and value:
            value = value[-1]
        elif isinstance(value, Mapping):
            value = next((value[key] for key in ("choices", "message", "messages", *_REPLIES) if value.get(key)), None)
        else:
            break
    raise RowFault("wrong_type", "of a trace whose output is not an answer")


_TEXT_PARTS = {"text": "text", "output_text": "text", "refusal": "refusal"}
"""Types of the parts of a message that people read, as OpenAI and Anthropic spell them → the key of the text."""
_THOUGHT_PARTS = ("thinking", "redacted_thinking", "reasoning")
"""Types of parts that are thought and not answered, which may stand beside the message (OpenAI's Responses) or in it (Anthropic)."""


def _are_parts(value: Any) -> bool:
    """Whether a value is the list of the parts of one message, not a list of messages or choices."""
    return (
        isinstance(value, list)
        and any(_kind(part) in _TEXT_PARTS for part in value)
        and not any(isinstance(part, Mapping) and "role" in part for part in value)
    )


def _kind(part: Any) -> str:
    """The type that a part names; empty if it names none, or something other than a text."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    return kind if isinstance(kind, str) else ""


def _part_text(part: Any) -> str:
    """The text of a part; empty for what was thought. RowFault for an image, a call of a tool, and anything else."""
    if isinstance(part, str):
        return part
    kind = _kind(part)
    if kind in _TEXT_PARTS and isinstance(text := part.get(_TEXT_PARTS[kind]), str):
        return text
    if kind in _THOUGHT_PARTS:
        return ""
    raise RowFault("wrong_type", "of an answer that is not text alone")
