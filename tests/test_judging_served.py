"""The openai backend against `transformers serve` on loopback, with models whose replies are known in advance."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from judging_model import LIKED, save_speaker

from plumbline.judging.building import load_judge
from plumbline.judging.judges import OpenaiJudge, SamplingConfig
from plumbline.judging.panel import AskingJudge
from plumbline.pipeline.records import read_json, read_jsonl
from plumbline.pipeline.shard_files import write_table
from plumbline.rows import assistant, text_of

ROOT = Path(__file__).parents[1]
PARAMS = """
seed: 17
engine: here
threads: 1
label:
  round1: {sample: round1, judge: openai, pairs: best_vs_worst}
"""
PROMPTS, EACH = 14, 4
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A `transformers serve` on loopback, stopped by its own process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("served") / "log"
    command = [str(Path(sys.executable).with_name("transformers")), "serve", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as out:
        server = subprocess.Popen([*command, "--device", "cpu"], stdout=out, stderr=out, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not healthy(port):
            assert server.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def label(project: Path, url: str, model: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    """Runs the stage by hand on a sample in which every second completion contains the word LIKED; all are equally long."""
    (project / "data/annotations").mkdir(parents=True)
    (project / "params.yaml").write_text(PARAMS)
    write_table(project / "artifacts/sample/round1", (
        {"id": f"p{number}", "index": index, "prompt": [{"role": "user", "content": f"Describe the number {number}."}], "policy": "sft",
         "completion": assistant(f"It is a {LIKED if index % 2 else 'negligible'} number , {index} ."), "finished": True, "tokens": 5}
        for number in range(PROMPTS) for index in range(EACH)
    ), 1024)  # fmt: skip
    command = [sys.executable, "-m", "stages.label", "label=round1", f"judge.model={model}", f"judge.base_url={url}",
               "judge.needs_key=false", "judge.reasoning=false", "judge.criteria=[accuracy]", "judge.structured=true",
               "judge.sampling.temperature=0.7", "judge.sampling.max_tokens=24", "judge.concurrency=4", *more]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(project)}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=300)


def test_a_served_judge_labels_a_sample_end_to_end(url: str, tmp_path: Path) -> None:
    done = label(tmp_path / "project", url, save_speaker(tmp_path / "model", "Rating: 3", "Rating: 8"))
    assert done.returncode == 0, done.stderr[-3000:]
    root = tmp_path / "project/scratch/label/round1"
    metrics = read_json(root / "artifacts/figures/label/round1.json")
    assert (metrics["verdicts"], metrics["unparsed_fraction"]) == (PROMPTS * EACH, 0.0)
    verdicts = read_jsonl(root / "artifacts/verdicts/round1.jsonl")
    assert {row["reply"] for row in verdicts} == {"Rating: 3", "Rating: 8"}
    assert all(
        row["attempts"] == 1 and row["input_tokens"] > 50 and row["output_tokens"] > 0 for row in verdicts
    )  # the server counts
    rows = [row for split in ("train", "validation") for row in read_jsonl(root / f"artifacts/label/round1/{split}.jsonl")]
    assert len(rows) == PROMPTS
    assert all(LIKED in text_of(row["chosen"]) and LIKED not in text_of(row["rejected"]) for row in rows)
    assert {(row["score_chosen"], row["score_rejected"]) for row in rows} == {(8.0, 3.0)}
    assert done.stderr.count("does not offer structured output (response_format)") == 1


def test_a_served_judge_without_verdicts_trips_the_gate_and_writes_no_labels(url: str, tmp_path: Path) -> None:
    done = label(tmp_path / "project", url, save_speaker(tmp_path / "model", "I would rather not say."), "judge.attempts=1")
    assert done.returncode != 0
    asked = PROMPTS * EACH
    assert f"unparsed_fraction is 1.000 ({asked} of {asked}), expected at most 0.05. Examples:" in done.stderr
    assert done.stderr.count("I would rather not say.") == 3
    assert "Traceback" not in done.stderr
    written = sorted(file.name for file in (tmp_path / "project/scratch/label/round1").rglob("*.jsonl"))
    assert written == ["round1.jsonl"]


def test_what_the_server_ignores_is_noticed_and_samples_are_asked_one_by_one(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    config = OpenaiJudge(
        model=str(save_speaker(tmp_path / "model", "Verdict: A")), base_url=url, needs_key=False, structured=True, probabilities=True,
        samples=2, sampling=SamplingConfig(temperature=1.0, max_tokens=24), both_orders=False, attempts=1,
    )  # fmt: skip
    judge = load_judge(config, seed=1)
    assert isinstance(judge, AskingJudge)
    prompts = [[{"role": "user", "content": f"Describe the number {number}."}] for number in range(4)]
    comparisons = judge.compare(prompts, ["It is even."] * 4, ["It is odd."] * 4)
    judge.finish()
    assert judge.ledger.bought == sum(len(comparison.verdicts) for comparison in comparisons) == 8  # a call for each sample
    assert all(comparison.probability is None for comparison in comparisons)
    assert all(
        comparison.outcome == comparison.verdicts[0].order[0] for comparison in comparisons
    )  # `A` is the answer shown first
    messages = capsys.readouterr().err
    assert messages.count("does not offer structured output (response_format)") == 1
    assert messages.count("does not offer token log-probabilities (logprobs)") == 1
