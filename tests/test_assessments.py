"""What people say in MLflow's pages comes in once, by an explicit command, and nothing else does."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import AssessmentSource, SpanType

from plumbline.data.faults import RowFault
from plumbline.feedback.assessments import Brought, _answer, bring, traces
from plumbline.feedback.folder import FOLDER, MLFLOW, read
from plumbline.feedback.lines import CORRECTION, DOWN, THUMB, UP, Line
from plumbline.tools.collecting import bring_from_mlflow, broken, summary
from tests.mlflow_stores import Server, empty_store, running_server, server  # noqa: F401  fixtures
from tests.saying import said, say, thumb, vote

ANN, BO = (AssessmentSource(source_type="HUMAN", source_id=name) for name in ("ann", "bo"))
PROGRAM = AssessmentSource(source_type="CODE", source_id="checker")
MODEL = AssessmentSource(source_type="LLM_JUDGE", source_id="judge")
ASKED = {"messages": [{"role": "user", "content": "What is 2 + 2?"}]}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[str]:  # noqa: F811
    """A store in which MLflow's own client recorded traces, and people and programs assessed them."""
    folder = tmp_path_factory.mktemp("traces")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    uri, before = f"sqlite:///{folder / 'mlflow.db'}", mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    mlflow.create_experiment("traces", artifact_location=str(folder / "artifacts"))
    mlflow.set_experiment("traces")
    try:
        _assess({name: _trace(*call) for name, call in CALLS.items()})
        yield uri
    finally:
        mlflow.set_tracking_uri(before)


CALLS: dict[str, tuple[str, Any, Any]] = {
    "four": (SpanType.CHAT_MODEL, ASKED, "It is 4."),
    "message": (SpanType.UNKNOWN, ASKED["messages"], {"role": "assistant", "content": "Four."}),
    "choices": (SpanType.UNKNOWN, {"prompt": "Say four."}, {"choices": [{"message": {"role": "assistant", "content": "Vier."}}]}),
    "verdict": (SpanType.EVALUATOR, ASKED, "A"),
    "judged": (SpanType.CHAT_MODEL, ASKED, {"reply": "B, I think.", "verdict": "B"}),
    "sum": (SpanType.TOOL, {"numbers": [2, 2]}, "4"),
    "empty": (SpanType.CHAT_MODEL, ASKED, ""),
}


def _trace(kind: str, inputs: Any, outputs: Any, *, flush: bool = True) -> str:
    with mlflow.start_span("call", span_type=kind) as span:
        span.set_inputs(inputs)
        span.set_outputs(outputs)
        mlflow.update_current_trace(tags={"policy": "dpo"})
    if flush:
        mlflow.flush_trace_async_logging()
    return str(span.trace_id)


def _assess(ids: dict[str, str]) -> None:
    def feedback(trace: str, value: Any, source: AssessmentSource = ANN, name: str = "good") -> str:
        return str(mlflow.log_feedback(trace_id=ids[trace], name=name, value=value, source=source).assessment_id)

    first = feedback("four", False)
    mlflow.override_feedback(trace_id=ids["four"], assessment_id=first, value=True, source=ANN)
    feedback("four", "no", BO)
    feedback("four", 0.3, BO, name="helpfulness")
    feedback("four", True, PROGRAM)
    feedback("four", True, MODEL)
    mlflow.log_expectation(trace_id=ids["message"], name="expected_response", value="It is four.", source=BO)
    mlflow.log_expectation(trace_id=ids["message"], name="facts", value=["four"], source=BO)
    for name in ("choices", "verdict", "judged", "sum", "empty"):
        feedback(name, 1)


def test_what_people_said_of_answers_comes_in_and_the_rest_is_counted(uri: str) -> None:
    lines, count, left_out = bring(traces(uri))
    assert count == len(CALLS)
    assert sorted((line.kind, line.verdict, line.answers[0].text) for line in lines) == [
        (CORRECTION, "It is four.", "Four."),
        (THUMB, DOWN, "It is 4."),
        (THUMB, UP, "It is 4."),
        (THUMB, UP, "Vier."),
    ]
    assert left_out == {
        "taken back or replaced": 1,
        "neither yes nor no": 1,
        "not said by a person": 2,
        "an expectation that is not a text": 1,
        "of a judge's verdict": 2,
        "of a trace whose input is not a conversation": 1,
        "of a trace whose output is not an answer": 1,
    }
    asked = {line.answers[0].text: [turn["content"] for turn in line.messages] for line in lines}
    assert asked == {"It is 4.": ["What is 2 + 2?"], "Four.": ["What is 2 + 2?"], "Vier.": ["Say four."]}
    assert {(line.source, line.answers[0].policy) for line in lines} == {("mlflow", "dpo")}


THOUGHT = {"type": "thinking", "thinking": "Two and two."}
ONE, OTHER = {"type": "text", "text": "It is "}, {"type": "text", "text": "4."}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ([ONE, OTHER], "It is 4."),
        ({"role": "assistant", "content": [ONE, OTHER]}, "It is 4."),
        ({"content": [THOUGHT, ONE, {"type": "redacted_thinking", "data": "x"}, OTHER], "stop_reason": "end_turn"}, "It is 4."),
        ({"content": ["It is ", OTHER]}, "It is 4."),
        ({"choices": [{"message": {"role": "assistant", "content": [ONE, OTHER]}}]}, "It is 4."),
        (
            {"output": [{"type": "reasoning"}, {"role": "assistant", "content": [{"type": "output_text", "text": "4"}, OTHER]}]},
            "44.",
        ),
        ({"content": [{"type": "refusal", "refusal": "I can't."}]}, "I can't."),
        ([{"role": "user", "content": [ONE]}, {"role": "assistant", "content": [OTHER]}], "4."),
        ({"content": [{"type": ["text"], "text": "4."}]}, "4."),  # its type says nothing, its text is there
        (["It is 3.", "It is 4."], "It is 4."),  # two answers, not two parts
    ],
)
def test_all_parts_of_an_answer_are_brought_and_no_more(outputs: Any, text: str) -> None:
    assert _answer(outputs) == text


@pytest.mark.parametrize(
    "outputs",
    [
        [IMAGE, ONE],
        {"content": [ONE, IMAGE]},
        {"content": [ONE, {"type": "tool_use", "name": "add"}]},
        {"content": [ONE, {"type": ["text"], "text": "a"}]},
    ],
)
def test_an_answer_that_is_not_text_alone_is_left_out_instead_of_cut(outputs: Any) -> None:
    with pytest.raises(RowFault, match="an answer that is not text alone"):
        _answer(outputs)


@pytest.mark.parametrize(
    "outputs",
    [
        [THOUGHT],
        {"content": [IMAGE]},
        {"content": [{"type": "text", "text": "  "}]},
        {"content": [{"type": ["text"], "value": "a"}]},
    ],
)
def test_parts_without_a_word_are_not_an_answer(outputs: Any) -> None:
    with pytest.raises(RowFault, match="whose output is not an answer"):
        _answer(outputs)


SPOKEN = [
    "Paris", '{"answer": "Paris"}', '{"answer":"Paris",\n "why": [1.0]}', '"Paris"', '["Paris", "Rome"]', "4", "null",
    '[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]', '{"choices": [{"message": {"content": "A"}}]}',
    '{"answer": "' + "long, " * 100 + '"}', '"' + "long, " * 100 + '"', "안녕 " * 100,
]  # fmt: skip


@pytest.mark.parametrize("served", [False, True])
def test_a_text_that_is_itself_json_stays_the_text_that_was_asked_or_answered(
    served: bool,
    project: Path,
    empty_store: Path,  # noqa: F811
    server: Server,  # noqa: F811
) -> None:
    """MLflow's database opens such a text, and its server writes it anew. Either way the line has every character."""
    address = server.address if served else f"sqlite:///{shutil.copy(empty_store, project / 'mlflow.db')}"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(address)
    try:
        mlflow.set_experiment("spoken")
        ids = [_trace(SpanType.CHAT_MODEL, text, text, flush=False) for text in SPOKEN]
        ids.append(_trace(SpanType.CHAT_MODEL, [{"role": "user", "content": SPOKEN[1]}], {"content": SPOKEN[1]}))
        for trace in ids:
            mlflow.log_feedback(trace_id=trace, name="good", value=True, source=ANN)
        lines = bring(traces(address)).lines
    finally:
        mlflow.set_tracking_uri(before)
    assert sorted(line.answers[0].text for line in lines) == sorted([*SPOKEN, SPOKEN[1]])
    assert all(line.messages == [{"role": "user", "content": line.answers[0].text}] for line in lines)


def test_half_of_a_character_is_left_out_and_counted(uri: str) -> None:
    recorded = [*traces(uri)]
    for trace in recorded:
        for assessment in trace.info.assessments:
            if assessment.expectation is not None and isinstance(assessment.expectation.value, str):
                assessment.expectation.value = "Cut \ud83d"
    lines, _, left_out = bring(recorded)
    assert left_out["of a text with half of a character"] == 1
    assert len(lines) == 3


def test_what_was_brought_once_is_not_brought_again(uri: str, project: Path) -> None:
    assert bring_from_mlflow(uri, None).startswith("4 new lines from 7 traces in MLflow (0 were there); left out: ")
    assert [entry.content for entry in read()] == bring(traces(uri)).lines
    before = said(MLFLOW)
    assert bring_from_mlflow(uri, None).startswith("0 new lines from 7 traces in MLflow (4 were there)")
    assert said(MLFLOW) == before


def test_somebody_who_changes_their_mind_is_brought_anew(uri: str, project: Path) -> None:
    bring_from_mlflow(uri, None)
    up = next(entry.content for entry in read() if isinstance(entry.content, Line) and entry.content.verdict == UP)
    say(Line(**{**vars(up), "verdict": DOWN}), file=MLFLOW)  # what an earlier export found
    assert bring_from_mlflow(uri, None).startswith("1 new lines")


def test_of_two_things_that_somebody_says_of_an_answer_the_later_counts_for_good(
    project: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bring(traces(uri))
    up = next(line for line in whole.lines if line.verdict == UP)
    monkeypatch.setattr(
        "plumbline.feedback.assessments.bring", lambda found: whole._replace(lines=[up, replace(up, verdict=DOWN)])
    )
    assert bring_from_mlflow(uri, None).startswith("1 new lines")
    assert bring_from_mlflow(uri, None).startswith("0 new lines")
    assert [entry.content.verdict for entry in read() if isinstance(entry.content, Line)] == [DOWN]


def test_a_condition_chooses_traces_and_one_that_mlflow_cannot_read_is_named(uri: str, project: Path) -> None:
    assert "from 0 traces" in bring_from_mlflow(uri, "tags.policy = 'sft'")
    assert "from 7 traces" in bring_from_mlflow(uri, "tags.policy = 'dpo'")
    with pytest.raises(
        ValueError, match=r"expected traces in MLflow at sqlite:.*found: .*nonsense.*Correct MLFLOW_TRACKING_URI or FILTER"
    ):
        bring_from_mlflow(uri, "nonsense")


def test_no_store_no_traces_and_no_tracking_are_each_said_in_a_sentence(project: Path, empty_store: Path) -> None:  # noqa: F811
    assert bring_from_mlflow("off", None) == "MLflow is switched off (MLFLOW_TRACKING_URI), so nothing was brought from it"
    assert bring_from_mlflow(f"sqlite:///{project}/none.db", None).endswith("/none.db yet, so nothing was brought from MLflow")
    assert not (project / "none.db").exists()
    assert bring_from_mlflow(f"sqlite:///{empty_store}", None) == "0 new lines from 0 traces in MLflow (0 were there)"
    assert bring([]) == Brought([], 0, {})
    assert not FOLDER.exists()


def test_the_summary_names_answers_of_policies_that_are_gone_or_were_trained_again(project: Path) -> None:
    say(vote("a"), thumb("b"))
    sentences = summary(read(), {"dpo": "d" * 16, "sft": "0" * 16})
    assert sentences[0] == "data/feedback has 2 lines of feedback: thumb up 1, vote A 1."
    assert len(sentences) == 2
    assert sentences[1].startswith(
        f"1 answers are sft's with the weights {'5' * 16}, and the sft that is there now has other weights."
    )
    assert "name the policies to learn from in feedback.<entry>.answers_of, or delete their lines" in sentences[1]
    assert "there is no artifacts/policy/dpo" in summary(read(), {})[1]


def test_a_broken_line_is_named_with_what_to_do(project: Path) -> None:
    say(vote("a"))
    with (FOLDER / "chat.jsonl").open("a") as file:
        file.write("[]\n")
    assert broken(read()) == [
        "data/feedback/chat.jsonl:2: expected a line of feedback, found not_an_object (list: []). Correct or delete the line."
    ]
