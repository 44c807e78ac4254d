"""`make feedback`: brings what people said in MLflow's review pages to data/feedback, and sums up what lies there.

It is the only way from MLflow into the pipeline, and somebody has to take it: no stage reads MLflow. What was brought before is not brought again.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from plumbline.feedback.folder import FOLDER, MLFLOW, Entry, append, current, read
from plumbline.feedback.lines import Line
from plumbline.feedback.talk import POLICIES, weights_of
from plumbline.pipeline.mlflow_calls import without_password
from plumbline.pipeline.tracking import quiet_mlflow, tracking_uri


def bring_from_mlflow(uri: str, condition: str | None) -> str:
    """Appends what is new in a tracking store to data/feedback/mlflow.jsonl, and says in a few words what there was.

    Raises:
        ValueError: the store cannot be read.
    """
    if uri == "off":
        return "MLflow is switched off (MLFLOW_TRACKING_URI), so nothing was brought from it"
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        return f"there is no {uri.removeprefix('sqlite:///')} yet, so nothing was brought from MLflow"
    from mlflow.exceptions import MlflowException

    from plumbline.feedback.assessments import bring, traces

    try:
        brought = bring(traces(uri, condition or None))
    except MlflowException as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"expected traces in MLflow at {without_password(uri)}, found: {reason}. Correct MLFLOW_TRACKING_URI or FILTER"
        ) from error
    known = {_content(entry.content) for entry in current(read()) if isinstance(entry.content, Line)}
    latest = {line.id: line for line in brought.lines}.values()  # a person may say something else later
    new = [line for line in latest if _content(line) not in known]
    if new:
        append(FOLDER / MLFLOW, new)
    left_out = "".join(f"; left out: {count} {reason}" for reason, count in brought.left_out.most_common())
    return f"{len(new)} new lines from {brought.traces} traces in MLflow ({len(latest) - len(new)} were there){left_out}"


def _content(line: Line) -> tuple[str, str]:
    """What makes a line new: what it is about, and what it says."""
    return line.id, line.verdict


def summary(entries: Iterable[Entry], weights: Mapping[str, str]) -> list[str]:
    """What lies in data/feedback, in sentences. weights: the digests of the policies that there are."""
    lines = [entry.content for entry in entries if isinstance(entry.content, Line)]
    said = Counter(f"{line.kind} {line.verdict}" if line.kind != "correction" else line.kind for line in lines)
    counts = ", ".join(f"{name} {count}" for name, count in sorted(said.items()))
    sentences = [f"{FOLDER} has {len(lines)} lines of feedback{f': {counts}' if counts else ''}."]
    about = Counter((answer.policy, answer.weights) for line in lines for answer in line.answers if answer.policy)
    for (policy, digest), count in sorted(about.items(), key=str):
        if weights.get(str(policy)) != digest:
            state = (
                f"the {policy} that is there now has other weights"
                if policy in weights
                else f"there is no {POLICIES / str(policy)}"
            )
            sentences.append(
                f"{count} answers are {policy}'s with the weights {digest}, and {state}. They are learnt from all the same: name the policies "
                "to learn from in feedback.<entry>.answers_of, or delete their lines."
            )
    return sentences


def broken(entries: Iterable[Entry]) -> list[str]:
    """A sentence for each line that cannot be read."""
    return [
        f"{FOLDER / file}:{number}: expected a line of feedback, found {content.reason} ({content.detail}). Correct or delete the line."
        for file, number, content in entries
        if not isinstance(content, Line)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--filter", default="", help="only these traces: a filter string of MLflow's search_traces")
    arguments = parser.parse_args()
    quiet_mlflow()
    try:
        print(f"feedback: {bring_from_mlflow(tracking_uri(), arguments.filter)}.")
    except (ValueError, OSError) as error:
        sys.exit(f"feedback: {error}")
    entries = current(read())
    weights = {file.parent.name: weights_of(file.parent) for file in POLICIES.glob("*/config.json")}
    print("\n".join(f"feedback: {sentence}" for sentence in summary(entries, weights)))
    if complaints := broken(entries):
        sys.exit("\n".join(f"feedback: {complaint}" for complaint in complaints))


if __name__ == "__main__":
    main()
