"""The store of bought replies when several processes write to it, and when they are killed."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from plumbline.judging.store import VerdictStore

ROOT = Path(__file__).parents[1]
SERVER = Path(__file__).with_name("judging_server.py")

BUYER = """
import sys
from pathlib import Path
from plumbline.judging.asking import Reply
from plumbline.judging.store import VerdictStore
store = VerdictStore(Path(sys.argv[1]))
for n in range(200):
    number = store.begin(f"{sys.argv[2]} {n}", "all", 1.0, None)
    store.receive(number, f"{sys.argv[2]} {n}", Reply("r", cost=0.25))
"""

CLIENT = """
import json, os, signal, sys
from pathlib import Path
from plumbline.judging.building import load_judge
from plumbline.judging.judges import OpenaiJudge, SamplingConfig
from plumbline.judging.store import VerdictStore

url, out, count, concurrency, kill_at, where = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]), sys.argv[6]
original, calls = getattr(VerdictStore, where, None), 0

def killing(*arguments):
    global calls
    calls += 1
    if calls == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)

if kill_at:
    setattr(VerdictStore, where, killing)
judge = load_judge(OpenaiJudge(model="m", base_url=url, needs_key=False, concurrency=concurrency, timeout_seconds=30.0, retries=20,
    backoff_seconds=0.01, longest_wait_seconds=0.05, sampling=SamplingConfig(max_tokens=10)), seed=1)
ratings = judge.rate([[{"role": "user", "content": "Say something."}]] * count, [f"answer {n}" for n in range(count)])
judge.finish()
Path(out).write_text(json.dumps([[r.score, [list(map(str, v)) for v in r.verdicts]] for r in ratings]))
"""


def test_processes_that_start_at_once_share_one_store(tmp_path: Path) -> None:
    folder = tmp_path / ".verdicts"
    processes = [subprocess.Popen([sys.executable, "-c", BUYER, str(folder), str(n)], cwd=ROOT) for n in range(4)]
    assert [process.wait(120) for process in processes] == [0] * 4
    totals = VerdictStore(folder).totals()
    assert totals.outcomes == {"received": 800}
    assert totals.cost == pytest.approx(200.0)


def bought_at(url: str) -> int:
    with urllib.request.urlopen(url.replace("/v1", "/stats"), timeout=10) as answer:
        return int(sum(json.load(answer)["delivered"].values()))


@pytest.mark.slow
def test_kill_9_at_ten_moments_changes_no_label_and_buys_no_received_answer_again(tmp_path: Path) -> None:
    """The processes kill themselves: before a reply is kept (`receive`), and within the transaction that keeps it (`_settle`)."""
    count, concurrency = 400, 8
    command = [sys.executable, str(SERVER), "--latency", "0.01", "--fault-rate", "0.1"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"

        def run(name: str, kill_at: int = 0, where: str = "receive") -> int:
            arguments = [url, str(tmp_path / f"{name}.json"), *map(str, (count, concurrency, kill_at)), where]
            environment = os.environ | {"DVC_ROOT": str(tmp_path / name)}
            return subprocess.run([sys.executable, "-c", CLIENT, *arguments], cwd=ROOT, env=environment, timeout=300).returncode

        assert run("calm") == 0
        before = bought_at(url)
        assert [run("rough", 35, where) for where in ("receive", "_settle") * 5] == [-signal.SIGKILL] * 10
        assert run("rough") == 0
        assert (tmp_path / "rough.json").read_bytes() == (tmp_path / "calm.json").read_bytes()
        assert count <= bought_at(url) - before <= count + 10 * concurrency
    finally:
        server.kill()
