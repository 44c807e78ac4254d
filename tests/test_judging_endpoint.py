"""The openai backend against an endpoint on loopback that fails in every way it can."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from judging_server import running, worth

from stages.judging.backends.endpoint import BudgetError, EndpointError
from stages.judging.config import OpenaiJudge, Prices, SamplingConfig
from stages.judging.judge import AskingJudge, load_judge
from stages.judging.store import VerdictStore

PROMPT = [{"role": "user", "content": "Say something."}]
ROOT = Path(__file__).parents[1]
SERVER = Path(__file__).with_name("judging_server.py")
KEY = "planted/0123456789+abcdef"  # of no known shape


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return tmp_path


def judge_at(url: str, **settings: Any) -> AskingJudge:
    defaults: dict[str, Any] = {
        "model": "m", "base_url": url, "needs_key": False, "concurrency": 8, "timeout_seconds": 4.0, "backoff_seconds": 0.01,
        "longest_wait_seconds": 0.05, "retries": 12, "attempts": 8, "sampling": SamplingConfig(max_tokens=10),
        "prices": Prices(input=100.0, output=1000.0),
    }  # fmt: skip
    judge = load_judge(OpenaiJudge(**(defaults | settings)), seed=1)
    assert isinstance(judge, AskingJudge)
    return judge


def rate(judge: AskingJudge, texts: list[str]) -> list[float | None]:
    scores = [rating.score for rating in judge.rate([PROMPT] * len(texts), texts)]
    judge.finish()
    return scores


def received(project: Path) -> dict[str, int]:
    """How often each distinct call was answered, by the store's own ledger."""
    with sqlite3.connect(project / ".verdicts/verdicts.sqlite") as connection:
        return dict(connection.execute("SELECT key, COUNT(*) FROM tries WHERE outcome = 'received' GROUP BY key"))


def tries(project: Path) -> dict[str, int]:
    """How tries ended, by the store's own ledger."""
    return dict(VerdictStore(project / ".verdicts").totals().outcomes)


def test_all_labels_complete_and_nothing_received_is_bought_again_at_30_percent_faults(project: Path) -> None:
    texts = [f"answer {number}" for number in range(150)]
    with running(fault_rate=0.3, hang_seconds=6.0) as server:
        judge = judge_at(server.url)
        scores = rate(judge, texts)
        assert scores == [float(worth(text)) for text in texts]
        assert set(server.faulty) > {"429", "500", "timeout", "drop", "truncated", "html", "slow", "empty", "refusal"}
        assert set(received(project).values()) == {1}
        bought, failed = len(received(project)), tries(project)
        # On a machine at its limits an answer may be sent after the client has stopped waiting for it.
        too_late = failed["timeout"] - server.faulty["timeout"] - server.faulty["slow"]
        assert judge.ledger.bought == bought == sum(server.delivered.values()) - too_late
        assert judge.ledger.failed == sum(failed.values()) - bought == server.calls - bought
        if not too_late:
            assert (judge.ledger.input_tokens, judge.ledger.output_tokens) == (server.input_tokens, server.output_tokens)
            assert judge.ledger.cost == pytest.approx((server.input_tokens * 100 + server.output_tokens * 1000) / 1e6)
        calls = server.calls
        again = judge_at(server.url)
        assert rate(again, texts) == scores
        assert server.calls == calls
        assert (again.ledger.bought, again.ledger.cost) == (0, 0.0)


def test_retry_after_is_waited_for() -> None:
    with running(fault_rate=1.0, faults=("429",), retry_after=1.5) as server:
        with pytest.raises(EndpointError, match="HTTP 429"):
            rate(judge_at(server.url, retries=1, backoff_seconds=0.0), ["x"])
        assert server.calls == 2
        first, second = server.arrivals
        assert second - first >= 1.5


def test_calls_under_way_are_bounded_by_concurrency() -> None:
    with running(latency=0.02) as server:
        rate(judge_at(server.url, concurrency=5), [f"a{number}" for number in range(60)])
        assert server.most_under_way == 5


def test_equal_questions_are_bought_once() -> None:
    with running() as server:
        rate(judge_at(server.url), ["same"] * 50)
        assert server.calls == 1


def test_max_cost_stops_before_it_is_exceeded_and_what_was_bought_is_kept(project: Path) -> None:
    texts = [f"answer {number}" for number in range(100)]
    with running(latency=0.005) as server:
        judge = judge_at(server.url, max_cost=1.0)
        with pytest.raises(BudgetError, match=r"stopped before judge.max_cost 1\.0"):
            rate(judge, texts)
        billed = (server.input_tokens * 100 + server.output_tokens * 1000) / 1e6
        assert 0.5 < billed <= 1.0
        bought = len(received(project))
        assert 0 < bought < 100
        scores = rate(judge_at(server.url, max_cost=50.0), texts)
        assert None not in scores
        assert sum(server.delivered.values()) == 100


def test_worst_case_of_a_lost_answer_counts_against_max_cost(project: Path) -> None:
    store = VerdictStore(project / ".verdicts")
    assert store.begin("k1", "me", 0.6, 1.0) is not None  # and the process is killed here
    store.close()
    again = VerdictStore(project / ".verdicts")
    assert again.begin("k2", "me", 0.6, 1.0) is None
    assert again.begin("k2", "somebody else", 0.6, 1.0) is not None
    assert again.totals("me").at_risk == pytest.approx(0.6)


@pytest.mark.parametrize(("fault", "billed"), [("timeout", 2), ("truncated", 2), ("429", 0), ("500", 0)])
def test_answers_that_may_be_billed_without_arriving_stay_reserved(project: Path, fault: str, billed: int) -> None:
    with running(fault_rate=1.0, faults=(fault,), hang_seconds=1.0) as server:
        with pytest.raises(EndpointError, match="failed 2 times"):
            rate(judge_at(server.url, retries=1, timeout_seconds=0.3, prices=Prices(output=1e5)), ["x"])
        assert server.calls == 2
    totals = VerdictStore(project / ".verdicts").totals()
    assert totals.cost == 0.0
    assert totals.at_risk == pytest.approx(billed * 10 * 1e5 / 1e6)  # max_tokens is 10


def test_dry_run_asks_nobody_and_prints_the_cost(project: Path) -> None:
    with running() as server:
        rate(judge_at(server.url), ["a", "b"])
        judge = judge_at(server.url, dry_run=True)
        judge.rate([PROMPT] * 4, ["a", "b", "c", "d"])
        with pytest.raises(SystemExit, match=r"asked 4 times; 2 replies are in .* at most 0\.\d+"):
            judge.finish()
        assert server.calls == 2


@pytest.mark.parametrize(("refused", "kept"), [("response_format", "max_tokens"), ("logprobs", "max_tokens")])
def test_what_an_endpoint_refuses_is_done_without(refused: str, kept: str) -> None:
    with running(refuses=(refused,)) as server:
        judge = judge_at(server.url, structured=True, probabilities=True, concurrency=1)
        comparison = judge.compare([PROMPT] * 3, ["a", "b", "c"], ["d", "e", "f"])
        judge.finish()
        assert all(c.outcome != "unparsed" for c in comparison)
        assert sum(refused in body for body in server.bodies) == 1
        assert kept in server.bodies[-1]


def test_what_an_endpoint_ignores_is_noticed_once_and_text_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    with running() as server:
        judge = judge_at(server.url, structured=True, probabilities=True)
        comparisons = judge.compare([PROMPT] * 5, list("abcde"), list("fghij"))
        judge.finish()
        assert all(c.outcome in ("a", "b", "tie") and c.probability is None for c in comparisons)
    assert capsys.readouterr().err.count("does not offer structured output") == 1


def test_structured_output_is_asked_for_by_schema_and_read() -> None:
    with running(structured=True) as server:
        judge = judge_at(server.url, structured=True)
        better, worse = sorted(("good", "bad"), key=worth, reverse=True)
        assert [c.outcome for c in judge.compare([PROMPT] * 2, [better, worse], [worse, better])] == ["a", "b"]
        schema = server.bodies[0]["response_format"]["json_schema"]["schema"]
        assert schema["properties"]["verdict"]["enum"] == ["A", "B", "tie"]
        judge.finish()


def test_probabilities_come_from_the_token_of_the_verdict_over_both_orders() -> None:
    with running(logprobs=True) as server:
        judge = judge_at(server.url, probabilities=True)
        better, worse = sorted(("good", "bad"), key=worth, reverse=True)
        comparison = judge.compare([PROMPT], [better], [worse])[0]
        judge.finish()
    # P = e^-0.1 / (e^-0.1 + e^-2.5) in both orders.
    assert comparison.probability == pytest.approx(0.91683, abs=1e-4)


def test_no_key_appears_in_errors_logs_or_the_store(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level("DEBUG")
    with running(status=401, echo=f"Incorrect API key provided: {KEY}") as server:
        with pytest.raises(EndpointError) as caught:
            rate(judge_at(server.url, needs_key=True), ["x"])
        assert KEY in server.headers[0]  # it is sent …
    shown = f"{caught.value!r} {caught.value.__cause__!r} {caught.getrepr(showlocals=False)}"
    out = capfd.readouterr()
    for text in (shown, out.out, out.err, caplog.text):
        assert KEY not in text  # … and appears nowhere else
    for file in project.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()


def test_a_missing_key_is_said_before_anything_is_asked() -> None:
    with pytest.raises(EndpointError, match="OPENAI_API_KEY"):
        judge_at("http://127.0.0.1:9/v1", needs_key=True)


def test_processes_that_start_at_once_share_one_store(project: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from stages.judging.store import VerdictStore; from stages.judging.chat import Reply\n"
        "store = VerdictStore(Path(sys.argv[1]))\n"
        "for n in range(200):\n"
        "    number = store.begin(f'{sys.argv[2]} {n}', 'all', 1.0, None)\n"
        "    store.receive(number, f'{sys.argv[2]} {n}', Reply('r', cost=0.25))\n"
    )
    folder = str(project / ".verdicts")
    processes = [subprocess.Popen([sys.executable, "-c", code, folder, str(n)], cwd=ROOT) for n in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    totals = VerdictStore(project / ".verdicts").totals()
    assert totals.outcomes == {"received": 800}
    assert totals.cost == pytest.approx(200.0)


CLIENT = """
import json, sys
from pathlib import Path
from stages.judging.config import OpenaiJudge, SamplingConfig
from stages.judging.judge import load_judge
url, out, count, concurrency = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
judge = load_judge(OpenaiJudge(model="m", base_url=url, needs_key=False, concurrency=concurrency, timeout_seconds=5.0, retries=20,
    backoff_seconds=0.01, longest_wait_seconds=0.05, sampling=SamplingConfig(max_tokens=10)), seed=1)
texts = [f"answer {n}" for n in range(count)]
import time
started, used = time.perf_counter(), time.process_time()
ratings = judge.rate([[{"role": "user", "content": "Say something."}]] * count, texts)
seconds, used = time.perf_counter() - started, time.process_time() - used
judge.finish()
Path(out).write_text(json.dumps([[r.score, [list(map(str, v)) for v in r.verdicts]] for r in ratings]))
import resource
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": seconds, "rate": count / seconds, "cpu_ms": 1000 * used / count, "rss_mib": peak}))
"""


def start_server(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, str(SERVER), *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    return process, f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"


def client(url: str, project: Path, out: Path, count: int, concurrency: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, url, str(out), str(count), str(concurrency)],
        cwd=ROOT, env=os.environ | {"DVC_ROOT": str(project)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def bought_at(url: str) -> int:
    with urllib.request.urlopen(url.replace("/v1", "/stats"), timeout=10) as answer:
        return int(sum(json.load(answer)["delivered"].values()))


@pytest.mark.slow
def test_kill_9_at_ten_moments_changes_no_label_and_buys_no_received_answer_again(tmp_path: Path) -> None:
    count, concurrency = 400, 8
    server, url = start_server("--latency", "0.03", "--fault-rate", "0.1")
    try:
        assert client(url, tmp_path / "calm", tmp_path / "calm.json", count, concurrency).wait(120) == 0
        before, kills = bought_at(url), 0
        for kill in range(10):
            run = client(url, tmp_path / "rough", tmp_path / "rough.json", count, concurrency)
            store = tmp_path / "rough/.verdicts/verdicts.sqlite"
            aim, deadline = (kill + 0.5) * count / 11, time.monotonic() + 60
            while run.poll() is None and time.monotonic() < deadline and replies(store) < aim:
                time.sleep(0.005)
            if run.poll() is None:
                run.send_signal(signal.SIGKILL)
                kills += 1
            run.wait(60)
        assert kills == 10
        assert client(url, tmp_path / "rough", tmp_path / "rough.json", count, concurrency).wait(120) == 0
        assert (tmp_path / "rough.json").read_bytes() == (tmp_path / "calm.json").read_bytes()
        assert count <= bought_at(url) - before <= count + 10 * concurrency
    finally:
        server.kill()


def replies(store: Path) -> int:
    if not store.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as connection:
            return int(connection.execute("SELECT COUNT(*) FROM replies").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


@pytest.mark.slow
def test_a_call_costs_less_processor_time_than_the_160_a_second_of_a_200_ms_endpoint_leave_it(tmp_path: Path) -> None:
    """At concurrency 32 there are 6.25 ms for each. Processor time, not the clock: tests share their machine."""
    server, url = start_server("--latency", "0.2")
    try:
        run = client(url, tmp_path, tmp_path / "out.json", 1600, 32)
        output, _ = run.communicate(timeout=120)
        figures = json.loads(output)
        assert figures["cpu_ms"] < 0.85 * 1000 / 160, figures
    finally:
        server.kill()
