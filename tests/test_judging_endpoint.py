"""The openai backend against an endpoint on loopback that fails in many ways."""

import asyncio
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from judging_server import Server, running, serving, worth

from plumbline.judging.asking import Reply
from plumbline.judging.backends.client import last_choice_logprobs
from plumbline.judging.backends.endpoint import BudgetError, EndpointChat
from plumbline.judging.building import load_judge
from plumbline.judging.judges import OpenaiJudge, PanelJudge, Prices, SamplingConfig
from plumbline.judging.panel import AskingJudge, Item
from plumbline.judging.store import VerdictStore
from plumbline.pipeline.endpoint_calls import Caller, EndpointError

PROMPT = [{"role": "user", "content": "Say something."}]
KEY = "planted/0123456789+abcdef"  # does not look like a key


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


def chat_of(judge: AskingJudge) -> EndpointChat:
    chat = judge._members[0].chat
    assert isinstance(chat, EndpointChat)
    return chat


def rate(judge: AskingJudge, texts: list[str]) -> list[float | None]:
    scores = [rating.score for rating in judge.rate([PROMPT] * len(texts), texts)]
    judge.finish()
    return scores


def received(project: Path) -> dict[str, int]:
    """How often each distinct call was answered, as the store counts."""
    with sqlite3.connect(project / ".verdicts/verdicts.sqlite") as connection:
        return dict(connection.execute("SELECT key, COUNT(*) FROM tries WHERE outcome = 'received' GROUP BY key"))


def tries(project: Path) -> dict[str, int]:
    """How tries ended, as the store counts."""
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
        # On a busy machine, an answer may be sent after the client has stopped waiting for it.
        too_late = failed["timeout"] - server.faulty["timeout"] - server.faulty["slow"]
        assert judge.ledger.bought == bought
        assert 0 <= sum(server.delivered.values()) - bought <= too_late
        assert judge.ledger.failed == sum(failed.values()) - bought >= server.calls - bought  # no call without a try of its own
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
        assert second - first > 1.49


def test_a_wait_of_hours_is_an_error() -> None:
    with running(fault_rate=1.0, faults=("429",), retry_after=7200) as server:
        with pytest.raises(EndpointError, match=r"left alone for 2\.0 hours"):
            rate(judge_at(server.url), ["x"])
        assert server.calls == 1


def test_calls_under_way_are_bounded_by_concurrency() -> None:
    with running(gather=5) as server:  # none is answered before five have come
        rate(judge_at(server.url, concurrency=5, timeout_seconds=60.0), [f"a{number}" for number in range(60)])
        assert server.most_under_way == 5


def test_calls_begin_a_moment_apart_and_never_slower_than_twice_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def begin(client: Caller, count: int) -> None:
        for _ in range(count):
            await client._space()

    monkeypatch.setattr("plumbline.pipeline.endpoint_calls.time.monotonic", lambda: 100.0)
    monkeypatch.setattr("plumbline.pipeline.endpoint_calls.asyncio.sleep", sleep)
    for call_seconds, apart in ((0.0, 0.0), (0.008, 0.0005), (0.2, 0.003), (30.0, 0.003)):
        client = Caller(OpenaiJudge(model="m", needs_key=False, concurrency=8), "http://127.0.0.1:9/v1", "Replies")
        client._call_seconds = call_seconds
        waits.clear()
        asyncio.run(begin(client, 4))
        assert waits == pytest.approx([n * apart for n in (1, 2, 3)] if apart else [])


def test_the_progress_bar_knows_what_is_still_to_come() -> None:
    with running() as server:
        judge = judge_at(server.url)
        judge.announce(0.25)
        judge.rate([PROMPT] * 5, list("abcde"))
        chat = chat_of(judge)
        assert chat._bar is not None
        assert (chat._called, chat._bar.total) == (5, 20)
        judge.announce(1.0)
        judge.rate([PROMPT] * 15, [f"x{n}" for n in range(15)])
        assert (chat._called, chat._bar.total) == (20, 20)
        judge.finish()


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
        assert 0.5 < billed <= 1.0  # one call costs less than 0.5 at its worst
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


class Slow(Server):
    async def answer(self, head: str, body: bytes, writer: asyncio.StreamWriter) -> bool:
        if b"slow" in body:
            await asyncio.sleep(1.0)
        return await super().answer(head, body, writer)


def test_a_reply_under_way_when_another_call_is_refused_is_received_and_kept(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Slow(refuses_text=("wrong",), error=(401, {"message": "who?"}), gather=2)) as server:
        judge = judge_at(server.url)
        with pytest.raises(EndpointError, match="HTTP 401"), judge.at_work():
            judge.rate([PROMPT] * 2, ["wrong", "slow"])
        assert tries(project) == {"refused": 1, "received": 1}
        assert not chat_of(judge)._client.caller.is_open
        assert server.calls == 2
        assert rate(judge_at(server.url), ["slow"]) == [worth("slow")]
        assert server.calls == 2
    assert (
        "judge: a call has failed for good: no other begins, and the stage ends when the 1 under way" in capsys.readouterr().err
    )


def test_an_error_in_a_dry_run_is_not_hidden_by_its_estimate() -> None:
    judge = judge_at("http://127.0.0.1:9/v1", dry_run=True)
    with pytest.raises(RuntimeError, match="a bug"), judge.at_work():
        raise RuntimeError("a bug")
    judge = judge_at("http://127.0.0.1:9/v1", dry_run=True)
    with pytest.raises(SystemExit, match="dry run"), judge.at_work():
        judge.rate([PROMPT], ["a"])


@pytest.mark.parametrize(("fault", "billed"), [("timeout", 2), ("truncated", 2), ("429", 0), ("500", 0)])
def test_answers_that_may_be_billed_without_arriving_stay_reserved(project: Path, fault: str, billed: int) -> None:
    timeout_seconds = 0.3 if fault == "timeout" else 60.0
    with (
        running(fault_rate=1.0, faults=(fault,), hang_seconds=5.0) as server,
        pytest.raises(EndpointError, match="failed 2 times"),
    ):
        rate(judge_at(server.url, retries=1, timeout_seconds=timeout_seconds, prices=Prices(output=1e5)), ["x"])
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
        comparisons = judge.compare([PROMPT] * 3, ["a", "b", "c"], ["d", "e", "f"])
        judge.finish()
        assert all(comparison.outcome != "unparsed" for comparison in comparisons)
        assert sum(refused in body for body in server.bodies) == 1
        assert kept in server.bodies[-1]


def test_what_an_endpoint_ignores_is_noticed_once_and_text_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    with running() as server:
        judge = judge_at(server.url, structured=True, probabilities=True)
        comparisons = judge.compare([PROMPT] * 5, list("abcde"), list("fghij"))
        judge.finish()
        assert all(c.outcome in ("a", "b", "tie") and c.probability is None for c in comparisons)
    assert capsys.readouterr().err.count("does not offer structured output") == 1


@pytest.mark.parametrize(
    ("extra", "choice", "cost"),
    [
        ({"usage": None}, {}, None),
        ({"usage": {"prompt_tokens": None, "completion_tokens": None}}, {}, None),
        ({}, {"logprobs": {"content": [{"token": "A"}, {"token": "B"}]}}, 0.0),
        ({}, {"logprobs": {"content": ["A"]}}, 0.0),
    ],
)
def test_an_answer_with_odd_extras_is_kept_and_one_without_usage_is_priced_at_its_worst(
    extra: dict[str, Any], choice: dict[str, Any], cost: float | None
) -> None:
    with running(extra=extra, choice=choice) as server:
        judge = judge_at(server.url, probabilities=True, both_orders=False)
        comparison = judge.compare([PROMPT], ["good"], ["bad"])[0]
        judge.finish()
        assert comparison.outcome in ("a", "b", "tie")
        assert (comparison.probability, server.calls, judge.ledger.bought) == (None, 1, 1)
        if cost is None:
            question = server.bodies[0]["messages"][0]["content"]
            assert judge.ledger.cost == pytest.approx(((len(question.encode()) + 32) * 100 + 10 * 1000) / 1e6)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, {"code": "content_filter", "message": "The response was filtered"}),
        (400, {"code": "invalid_prompt", "message": "Invalid prompt"}),
        (400, {"message": "This model's maximum context length is 4096 tokens. However, max_tokens is too large: 9000"}),
    ],
)
def test_a_question_that_an_endpoint_refuses_has_no_verdict_and_the_others_have_theirs(
    project: Path, status: int, error: dict[str, Any]
) -> None:
    with running(refuses_text=("bad words",), error=(status, error)) as server:
        scores = rate(judge_at(server.url, attempts=1), ["good", "bad words", "fine"])
        assert (scores[0], scores[1], scores[2]) == (float(worth("good")), None, float(worth("fine")))
        assert all("max_completion_tokens" not in body for body in server.bodies)
        rate(judge_at(server.url, attempts=1), ["bad words"])
        assert server.calls == 3  # the endpoint is not asked about it again
    assert VerdictStore(project / ".verdicts").totals().at_risk == 0


def test_what_was_never_sent_is_not_counted_as_perhaps_billed(project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    with pytest.raises(EndpointError, match="ConnectError"):
        rate(judge_at(url, retries=1, prices=Prices(output=1e5)), ["x"])
    assert VerdictStore(project / ".verdicts").totals().at_risk == 0


def test_a_choice_named_in_the_reasoning_has_no_probability() -> None:
    tops = [{"token": "A", "logprob": -0.1}]
    tokens = [
        {"token": "A", "top_logprobs": tops},
        {"token": " errs", "top_logprobs": []},
        {"token": ". Verdict: b", "top_logprobs": []},
    ]
    assert last_choice_logprobs({"logprobs": {"content": tokens}}, ("A", "B")) is None
    tokens = [
        {"token": "Verdict:", "top_logprobs": []},
        {"token": " A", "top_logprobs": tops},
        {"token": "]].", "top_logprobs": []},
    ]
    assert last_choice_logprobs({"logprobs": {"content": tokens}}, ("A", "B")) == {"A": -0.1}


def test_a_refused_max_tokens_is_asked_for_by_its_newer_name() -> None:
    with running(refuses=("max_tokens",)) as server:
        assert rate(judge_at(server.url, concurrency=1), ["a", "b"]) == [float(worth("a")), float(worth("b"))]
        assert [set(body) & {"max_tokens", "max_completion_tokens"} for body in server.bodies] == [
            {"max_tokens"}, {"max_completion_tokens"}, {"max_completion_tokens"},
        ]  # fmt: skip
        assert server.bodies[-1]["max_completion_tokens"] == 10


@pytest.mark.parametrize("url", [f"http://user:{KEY}@127.0.0.1/v1", f"user:{KEY}@127.0.0.1/v1", f"http://127.0.0.1/v1?key={KEY}"])
def test_an_address_with_a_secret_is_refused_before_it_is_logged_and_not_repeated(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for make in (lambda: OpenaiJudge(base_url=url), lambda: PanelJudge(members={"one": {"backend": "openai", "base_url": url}})):
        with pytest.raises(ValueError, match=r"judge\.base_url: expected an address alone") as caught:
            make()
        assert KEY not in str(caught.value)
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(ValueError, match="expected an address alone") as caught:
        judge_at("")
    assert KEY not in str(caught.value)


def test_what_another_process_bought_while_a_call_waited_is_not_bought_again(project: Path) -> None:
    with running(fault_rate=1.0, faults=("429",)) as server:
        judge = judge_at(server.url, retries=3)
        (request,) = judge._requests(judge._members[0], "rating", Item(PROMPT, ("x",)))
        key = chat_of(judge)._key_of(request)
        server.on_call = lambda: VerdictStore(project / ".verdicts").keep(key, Reply("Rating: 9"))  # and then the call fails
        assert rate(judge, ["x"]) == [9.0]
        assert (server.calls, judge.ledger.bought, judge.ledger.cached) == (1, 0, 1)


def test_labels_follow_the_probabilities_and_win_rates_the_verdicts() -> None:
    with running(logprobs=True) as server:
        judge = judge_at(server.url, probabilities=True)
        better, worse = sorted(("good", "bad"), key=worth, reverse=True)
        comparison = judge.compare([PROMPT], [worse], [better])[0]
        judge.finish()
    assert comparison.win == 0.0
    assert comparison.score == comparison.probability == pytest.approx(1 - 0.91683, abs=1e-4)
    assert (comparison.swapped().win, comparison.swapped().score) == (1.0, pytest.approx(0.91683, abs=1e-4))


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


def test_a_missing_key_is_an_error_before_anything_is_asked() -> None:
    with pytest.raises(EndpointError, match="OPENAI_API_KEY"):
        judge_at("http://127.0.0.1:9/v1", needs_key=True)
