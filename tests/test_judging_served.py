"""The openai backend against `transformers serve` on loopback, with a judge that the pipeline made and one that nobody trained."""

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

import judging_model
import pytest

from stages.judging.config import OpenaiJudge, SamplingConfig
from stages.judging.judge import AskingJudge
from stages.judging.loading import load_judge
from stages.pipeline.records import read_json, read_jsonl, write_jsonl

ROOT = Path(__file__).parents[1]
PARAMS = """
seed: 17
threads: 1
label:
  round1: {sample: round1, judge: openai, constitution: none, pairs: best_vs_worst}
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `trained` and `untrained`, made in a process of its own so that this one keeps its threads and seeds."""
    folder = tmp_path_factory.mktemp("models")
    subprocess.run([sys.executable, str(ROOT / "tests/judging_model.py"), str(folder)], check=True, timeout=300)
    return folder


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


def label(project: Path, url: str, model: Path, prompts: int, *more: str) -> "subprocess.CompletedProcess[str]":
    """The stage by hand over a sample of `prompts` prompts with 8 completions each."""
    (project / "data/annotations").mkdir(parents=True)
    (project / "params.yaml").write_text(PARAMS)
    write_jsonl(project / "artifacts/sample/round1/completions.jsonl", judging_model.sample(prompts, 8, seed=99))
    command = [sys.executable, "-m", "stages.label", "label=round1", f"judge.model={model}", f"judge.base_url={url}",
               "judge.needs_key=false", "judge.reasoning=false", "judge.criteria=[accuracy]", "judge.structured=true",
               "judge.sampling.temperature=0.7", "judge.sampling.max_tokens=24", "judge.concurrency=4", *more]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(project)}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=300)


def test_a_judge_trained_on_the_form_of_verdicts_labels_a_sample_end_to_end(models: Path, url: str, tmp_path: Path) -> None:
    done = label(tmp_path / "project", url, models / "trained", 14)
    assert done.returncode == 0, done.stderr[-3000:]
    root = tmp_path / "project/scratch/label/round1"
    metrics = read_json(root / "metrics/label/round1.json")
    print(metrics)
    assert metrics["verdicts"] >= 100
    assert metrics["unparsed_fraction"] <= 0.05  # the default limit; the aim is at most 0.1
    verdicts = read_jsonl(root / "artifacts/label/round1/verdicts.jsonl")
    first_try = sum(row["attempts"] == 1 and row["value"] is not None for row in verdicts) / len(verdicts)
    print(f"read at the first try: {first_try:.3f} of {len(verdicts)}")
    assert first_try >= 0.9
    assert all(row["input_tokens"] > 50 and row["output_tokens"] > 3 for row in verdicts)  # the server's own counts
    assert len(read_jsonl(root / "artifacts/label/round1/train.jsonl")) > 5
    assert done.stderr.count("does not offer structured output (response_format)") == 1


def test_an_untrained_judge_trips_the_gate_and_writes_no_labels(models: Path, url: str, tmp_path: Path) -> None:
    done = label(tmp_path / "project", url, models / "untrained", 5, "judge.attempts=1")
    print(done.stderr[-1500:])
    assert done.returncode != 0
    assert "unparsed_fraction is 1.000 (40 of 40), expected at most 0.05. Examples:" in done.stderr
    assert done.stderr.count("\n      p") == 3
    assert "Traceback" not in done.stderr
    written = sorted(file.name for file in (tmp_path / "project/scratch/label/round1").rglob("*.jsonl"))
    assert written == ["verdicts.jsonl"]


def test_what_the_server_ignores_is_noticed_and_samples_are_asked_one_by_one(
    models: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    config = OpenaiJudge(
        model=str(models / "trained"), base_url=url, needs_key=False, criteria=["accuracy"], structured=True, probabilities=True,
        samples=2, sampling=SamplingConfig(temperature=1.0, max_tokens=24), both_orders=False, attempts=1,
    )  # fmt: skip
    judge = load_judge(config, seed=1)
    assert isinstance(judge, AskingJudge)
    rows = judging_model.sample(4, 2, seed=5)
    texts = [row["completion"][0]["content"] for row in rows]
    comparisons = judge.compare([row["prompt"] for row in rows[::2]], texts[::2], texts[1::2])
    judge.finish()
    asked = sum(len(comparison.verdicts) for comparison in comparisons)
    assert judge.ledger.bought == asked >= 6  # the server would ignore `n`: each sample is a call of its own
    assert all(comparison.probability is None for comparison in comparisons)
    said = capsys.readouterr().err
    assert said.count("does not offer structured output (response_format)") == 1
    assert said.count("does not offer token log-probabilities (logprobs)") == 1
