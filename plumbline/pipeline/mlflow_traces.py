"""A judge's conversations as traces in MLflow: the question, the reply, and the verdict that was read from it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

LONGEST_PREVIEW = 200  # characters


def deliver_traces(uri: str, run_id: str, experiment: str, traces: Sequence[Mapping[str, Any]]) -> None:
    """Sends traces that belong to a run. Their ids follow from the run and their order, so that sending them twice changes nothing.

    traces: each with `name`, `messages`, `reply`, `verdict`, `judge` (the model's name), `attributes` and `nanoseconds`, its time.
    """
    from mlflow.entities import AssessmentSource, Feedback, Span, TraceInfo, TraceLocation, TraceState
    from mlflow.tracing.client import TracingClient
    from mlflow.tracing.constant import TraceMetadataKey

    client, spans = TracingClient(uri), []
    for number, trace in enumerate(traces):
        key = hashlib.sha256(f"{run_id} {number}".encode()).hexdigest()
        trace_id, verdict = f"tr-{key[:32]}", trace["verdict"]
        feedback = Feedback(
            name="verdict",
            value="unread" if verdict is None else verdict,
            trace_id=trace_id,
            source=AssessmentSource("LLM_JUDGE", trace["judge"]),
        )
        feedback.assessment_id = f"a-{key[:32]}"
        client.start_trace(
            TraceInfo(
                trace_id=trace_id,
                trace_location=TraceLocation.from_experiment_id(experiment),
                request_time=trace["nanoseconds"] // 10**6,
                execution_duration=0,  # a judge is asked many questions at once
                state=TraceState.ERROR if verdict is None else TraceState.OK,
                request_preview=trace["messages"][-1]["content"][:LONGEST_PREVIEW],
                response_preview=trace["reply"][:LONGEST_PREVIEW],
                trace_metadata={TraceMetadataKey.SOURCE_RUN: run_id},
                tags={"mlflow.traceName": trace["name"]},
                assessments=[feedback],
            )
        )
        spans.append(Span.from_dict(_span(trace_id, key, trace)))
    client.log_spans(experiment, spans)


def _span(trace_id: str, key: str, trace: Mapping[str, Any]) -> dict[str, Any]:
    attributes = {
        "mlflow.traceRequestId": trace_id,
        "mlflow.spanType": "CHAT_MODEL",
        "mlflow.spanInputs": {"messages": trace["messages"]},
        "mlflow.spanOutputs": {"reply": trace["reply"], "verdict": trace["verdict"]},
        **trace["attributes"],
    }
    return {
        "name": trace["name"],
        "trace_id": trace_id,
        "span_id": key[:16],
        "parent_span_id": None,
        "start_time_unix_nano": trace["nanoseconds"],
        "end_time_unix_nano": trace["nanoseconds"],
        "status": {"code": "STATUS_CODE_OK", "message": ""},
        "attributes": {name: json.dumps(value, ensure_ascii=False) for name, value in attributes.items()},
        "events": [],
    }
