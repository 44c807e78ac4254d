"""Claims about engines: what a server draws is what this process would, what is refused, and what a failing server costs."""

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from completions_server import CompletionsServer
from judging_server import serving
from omegaconf import OmegaConf
from ppo_tiny import PROMPTS, tiny_policy, word_tokenizer

from plumbline.evaluation.section import EvaluateSection
from plumbline.models.saving import save_policy
from plumbline.models.served import Served
from plumbline.models.uniforms import request_seed
from plumbline.pipeline import endpoint_calls
from plumbline.pipeline.composing import CONF, problems
from plumbline.pipeline.endpoint_calls import EndpointError
from plumbline.pipeline.engine import DRAWING, STATED, Engine, Server, address_of, decisive, engine_lacks, served_name
from plumbline.pipeline.params import load_params
from plumbline.pipeline.records import read_json, read_jsonl, write_jsonl
from plumbline.pipeline.shard_files import read_table
from plumbline.rows import Row
from plumbline.tools import served_name as served_name_tool
from stages import answer, sample
from stages.answer import AnswerStage
from stages.check import recipe_errors
from stages.sample import SampleEntry, SampleStage
from tests.conftest import ROOT
from tests.interrupting import Interrupted, contents

POLICY = Path("artifacts/policy/sft")
SAMPLED = ("artifacts/sample/one", "artifacts/figures/sample/one.json")
ANSWERED = ("artifacts/answer/sft", "artifacts/figures/answer/sft.json")
HERE = Engine()


def engine_of(name: str, **changes: Any) -> Engine:
    """The engine of a file of conf/engine; changes: of its server."""
    values: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"engine/{name}.yaml"))
    del values["defaults"]
    server = values.pop("server")
    return Engine(server and Server(**server | changes), **values)


@pytest.fixture
def world(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a policy and prompts, as under DVC."""
    monkeypatch.setenv("DVC_STAGE", "sample@one")
    monkeypatch.setattr(answer, "BATCH_SIZE", 1)
    save_policy(tiny_policy(), word_tokenizer(), project / POLICY)
    rows: list[Row] = [{"id": f"p{number}", "prompt": prompt} for number, prompt in enumerate(PROMPTS)]
    for split in ("train", "test"):
        write_jsonl(project / f"artifacts/data/prompts/{split}.jsonl", rows)
    write_jsonl(project / "artifacts/data/sft/train.jsonl", [])
    return project


@contextlib.contextmanager
def server(**settings: Any) -> Iterator[tuple[CompletionsServer, Engine]]:
    """A server of the policy, and an engine that knows it and waits for nothing."""
    settings = {"model": served_name(Server(), POLICY), "hang_seconds": 6.0, **settings}
    with serving(CompletionsServer(folder=POLICY, **settings)) as running:
        yield running, patient(running.url)


def patient(url: str, **changes: Any) -> Engine:
    quick = {"backoff_seconds": 0.01, "longest_wait_seconds": 0.05, "timeout_seconds": 4.0, "concurrency": 4, "retries": 12}
    return engine_of("vllm", base_url=url, **quick | changes)


def draw(engine: Engine, **changes: Any) -> dict[str, bytes]:
    settings: dict[str, Any] = {"policy": "sft", "of": "rollout", "n": 2, "prompts": 0, "min_p": 0.0}
    entry = SampleEntry(**{**settings, "max_new_tokens": 6, "batch_size": 1, "shard_prompts": 2, **changes})
    sample.run(SampleStage(seed=3, threads=1, engine=engine, sample=entry), "one")
    return contents(SAMPLED)


def ask(engine: Engine, **changes: Any) -> dict[str, bytes]:
    settings: dict[str, Any] = {"policies": ["sft"], "against": "sft", "judge": "none", "reward": "none", "max_new_tokens": 6}
    section = EvaluateSection(**settings | changes)
    answer.run(AnswerStage(seed=3, threads=1, engine=engine, policy="sft", shard_prompts=2, evaluate=section))
    return contents(ANSWERED)


# ---- the same completions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "decoding", [{}, {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.3}, {"temperature": 0.0, "n": 1}]
)  # fmt: skip
def test_a_server_that_draws_by_our_numbers_samples_the_bytes_of_this_process(world: Path, decoding: dict[str, Any]) -> None:
    here = draw(HERE, **decoding)
    with server() as (running, engine):
        assert draw(engine, **decoding) == here
    assert running.calls == len(read_table(Path(SAMPLED[0])))


@pytest.mark.parametrize("decoding", [{}, {"temperature": 0.7, "top_p": 0.9, "samples": 2, "samples_at_1": 2}])
def test_answers_and_their_log_probabilities_are_those_of_this_process(world: Path, decoding: dict[str, Any]) -> None:
    here = ask(HERE, **decoding)
    with server() as (running, engine):
        assert ask(engine, **decoding) == here
    asked_for_logps = {("logprobs" in body) for body in running.bodies if body["temperature"] == 1.0}
    assert asked_for_logps == {True}
    assert not any("logprobs" in body for body in running.bodies if body["temperature"] != 1.0)


def test_workers_that_ask_a_server_get_the_bytes_of_this_process(world: Path) -> None:
    here = draw(HERE, prompts=8)
    with server(fault_rate=0.3, faults=("500",)) as (running, engine):
        assert draw(replace(engine, shards="processes", workers=2), prompts=8) == here
    rows = [row for row in read_jsonl(".timings/sample@one.jsonl") if "calls_repeated" in row]
    assert [row["calls_repeated"] for row in rows] == [running.calls - len(read_table(Path(SAMPLED[0])))]


def test_a_request_states_the_whole_decoding_and_what_ends_a_completion(world: Path) -> None:
    with server() as (running, engine):
        draw(engine, top_k=5)
    [body, *_] = running.bodies
    tokenizer = word_tokenizer()
    assert {key: value for key, value in body.items() if key not in ("prompt", "seed", "logit_bias")} == {
        "model": running.model, "n": 1, "max_tokens": 6, "temperature": 1.0, "top_k": 5, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0,
        "stop_token_ids": [tokenizer.eos_token_id], "ignore_eos": True, "return_token_ids": True,
    }  # fmt: skip
    assert all(type(one) is int for one in body["prompt"])


def test_further_fields_of_a_request_are_the_engines(world: Path) -> None:
    with server() as (running, _):
        draw(patient(running.url, request={"repeat_penalty": 1.0, "cache_prompt": True}))
    assert all(body["repeat_penalty"] == 1.0 and body["cache_prompt"] for body in running.bodies)


def test_no_field_that_a_stage_states_can_be_replaced(world: Path) -> None:
    with server() as (running, engine):
        draw(engine, top_k=5)
        ask(engine)
    stated = {name for body in running.bodies for name in body}
    assert stated | {"logit_bias"} == {*STATED}  # for a model with rows without a token
    for name in stated:
        [complaint] = Server(request={name: 1, "other": 1}).problems()
        assert complaint.startswith(
            f"request: expected fields that the stage does not set itself, found {name}. Set the decoding"
        )


def test_a_server_that_leaves_out_the_end_of_turn_gets_it_back(world: Path) -> None:
    here = draw(HERE)
    with server(gives_end=False) as (_, engine):
        assert draw(engine) == here


def test_seeds_of_requests_differ_by_run_and_row_within_31_bits() -> None:
    seeds = {request_seed(seed, row) for seed in (0, 3, 2**31) for row in range(1000)}
    assert len(seeds) == 3000
    assert all(0 <= seed < 2**31 for seed in seeds)


# ---- failures -----------------------------------------------------------------------------------------------------------


def test_failures_that_pass_change_nothing(world: Path) -> None:
    here = draw(HERE)
    faults = ("429", "500", "timeout", "drop", "truncated", "html", "slow")
    with server(fault_rate=0.4, faults=faults) as (running, engine):
        assert draw(engine) == here
        assert running.calls > len(PROMPTS) * 2


def test_a_server_that_breaks_costs_the_shard_that_it_was_at(world: Path) -> None:
    """Eight completions are two shards of two prompts; the second run has other retries, calls and address, and draws what is missing."""
    here = draw(HERE, prompts=4)
    with (
        server(breaks_after=6) as (running, _),
        pytest.raises(
            EndpointError,
            match=r"failed 2 times for one call, the last time with HTTP 500\. The shards completed so far are kept",
        ),
    ):
        draw(patient(running.url, retries=1), prompts=4)
    with server() as (running, _):
        assert draw(patient(running.url, concurrency=1), prompts=4) == here
        assert running.calls == 4


def test_a_killed_run_goes_on_with_the_shards_that_it_has(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = draw(HERE, prompts=6)
    rename, done = os.replace, []

    def killing(source: Any, target: Any) -> None:
        if str(source).endswith(".partial"):
            done.append(target)
            if len(done) == 3:
                raise Interrupted
        rename(source, target)

    monkeypatch.setattr(os, "replace", killing)
    with server() as (_, engine), pytest.raises(Interrupted):
        draw(engine, prompts=6)
    with server() as (running, engine):
        assert draw(engine, prompts=6) == here
        assert running.calls == 4  # the third shard's


@pytest.mark.parametrize(
    ("settings", "error"),
    [({"breaks_after": 2}, EndpointError), ({"max_model_len": 7}, ValueError), ({"model": "another"}, ValueError)],
)
def test_an_error_leaves_no_connection_and_no_event_loop_open(
    world: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], error: type[Exception]
) -> None:
    closed: list[Served] = []
    close = Served.close

    def recording(served: Served) -> None:
        close(served)
        closed.append(served)

    monkeypatch.setattr(Served, "close", recording)
    with server(**settings) as (running, _), pytest.raises(error):
        draw(patient(running.url, retries=0))
    [served] = closed
    assert not served._caller.is_open
    with pytest.raises(RuntimeError, match="Runner is closed"):
        served._runner.get_loop()


def test_only_what_decides_a_completion_identifies_a_computation() -> None:
    def key(**changes: Any) -> dict[str, Any]:
        return decisive("sample", {"seed": 1, "engine": asdict(engine_of("vllm", **changes))})

    assert key(concurrency=1, retries=0, base_url="http://127.0.0.1:1/v1") == key()
    assert decisive("sample", {"seed": 1, "engine": asdict(replace(engine_of("vllm"), shards="processes", workers=4))}) == key()
    assert key(request={"repeat_penalty": 1.1}) != key() != key(model="another")
    others = {name: decisive("sample", {"engine": asdict(engine_of(name))}) for name in ("here", "processes", "ray")}
    assert others["here"] == others["processes"] == others["ray"] == {"engine": {"server": None}}
    assert decisive("sample", {"seed": 1}) == {"seed": 1}


@pytest.mark.parametrize("stage", ["filter", "label", "reject", "evaluate"])
def test_a_stage_that_draws_nothing_goes_on_with_another_engine(stage: str) -> None:
    keys = [decisive(stage, {"seed": 1, "engine": asdict(engine_of(name))}) for name in ("here", "vllm")]
    assert keys[0] == keys[1] == {"seed": 1, "engine": None}


def test_the_stages_that_draw_are_those_that_depend_on_what_draws() -> None:
    nodes = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    drawn_by = ("artifacts/engine.json", "artifacts/samplers/")
    deps = {stage: (node.get("do") or node).get("deps", []) for stage, node in nodes.items()}
    assert {stage for stage, paths in deps.items() if any(path.startswith(drawn_by) for path in paths)} == {*DRAWING}


# ---- what is refused ----------------------------------------------------------------------------------------------------


def test_a_server_of_another_policy_is_refused_with_the_command_that_serves_this_one(world: Path) -> None:
    name = served_name(Server(), POLICY)
    with server(model="sft-00000000") as (running, engine):
        with pytest.raises(ValueError, match=f"to serve '{name}', which is {POLICY} as it is now, found sft-00000000") as refused:
            draw(engine)
        assert running.calls == 0
    assert f"`vllm serve {POLICY} --served-model-name {name}`" in str(refused.value)


def test_training_again_gives_a_policy_another_name(world: Path) -> None:
    before = served_name(Server(), POLICY)
    save_policy(tiny_policy(9), word_tokenizer(), POLICY)
    assert before.startswith("sft-")
    assert served_name(Server(), POLICY) != before
    assert served_name(Server(model="artifacts/policy/{policy}"), POLICY) == "artifacts/policy/sft"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"choices": 0}, "failed 2 times for one call, the last time with an answer that has not exactly one choice"),
        ({"choices": 2}, "an answer that has not exactly one choice"),
        ({"over": {"finish_reason": "abort"}}, "a completion that ended by 'abort'"),
        ({"over": {"finish_reason": "length", "token_ids": [5, 6]}}, "expected .* to complete by up to 6 tokens, found a completion that it cut off "
         "after 2. Serve the policy with a longer context"),
        ({"over": {"token_ids": [10**6]}}, "expected ids below the .* of artifacts/policy/sft from .*, found 1000000. It serves a model"),
        ({"extra": {"model": "another"}}, "expected a completion by 'sft-.*, found one by 'another'"),
        ({"refuses": ("top_k",)}, "refused a completion of .* tokens by at most 6 more of .* with HTTP 400: .*Unsupported parameter: top_k"),
        ({"over": {"token_ids": None}}, "expected the token ids of each completion .*, found none. KL and importance ratios are estimated from"),
        ({"over": {"logprobs": None}}, "expected a log-probability of each of the .* tokens of a completion from .*, found 0"),
        ({"over": {"logprobs": {"token_logprobs": [None] * 6}}}, "expected a log-probability of each"),
    ],
)  # fmt: skip
def test_an_answer_that_cannot_be_used_is_refused_in_a_sentence(world: Path, settings: dict[str, Any], message: str) -> None:
    with server(**settings) as (running, _), pytest.raises(EndpointError, match=message):
        ask(patient(running.url, retries=1))


def test_a_context_that_is_too_short_is_refused_before_anything_is_drawn(world: Path) -> None:
    with server(max_model_len=7) as (running, engine):
        with pytest.raises(
            ValueError, match=r"with a context of at least \d+ tokens, found 7\. Start it with a longer one"
        ) as refused:
            draw(engine)
        assert running.calls == 0
    assert "--max-model-len" in str(refused.value)


def test_a_server_that_refuses_the_key_is_named(world: Path) -> None:
    message = r"engine: http://127.0.0.1:\d+/v1 refused to list its models with HTTP 401: .*the key in ENGINE_API_KEY"
    with server(status=401) as (_, engine), pytest.raises(EndpointError, match=message):
        draw(engine)


def test_a_server_that_cannot_be_reached_is_named(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        message = (
            rf"engine\.server: expected a server at {address}, found none in 3 tries \(ConnectError\)\. Start it, or check "
            r"engine\.server\.base_url\. The shards completed so far are kept"
        )
        with pytest.raises(EndpointError, match=message):
            draw(patient(address))
        monkeypatch.setenv("ENGINE_BASE_URL", address)
        with pytest.raises(EndpointError, match=r"check engine\.server\.base_url or ENGINE_BASE_URL\. "):
            draw(engine_of("vllm", backoff_seconds=0.01))


def test_a_server_that_accepts_no_connection_is_reported_after_seconds(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a host that drops what it is sent, whose silence would otherwise last as long as the longest completion."""
    monkeypatch.setattr(endpoint_calls, "CONNECT_SECONDS", 0.1)
    with socket.socket() as full, contextlib.ExitStack() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(2):  # the queue of connections that nobody accepts
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        with pytest.raises(EndpointError, match=r"found none in 3 tries \(ConnectTimeout\)"):
            draw(patient(f"http://127.0.0.1:{full.getsockname()[1]}/v1", timeout_seconds=60.0))


def test_texts_without_ids_are_tokenised_again_marked_counted_and_noted(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(HERE)
    here = read_table(Path(SAMPLED[0]))
    with server(gives_ids=False) as (running, engine):
        draw(engine)
    rows = read_table(Path(SAMPLED[0]))
    assert [row["completion"] for row in rows] == [row["completion"] for row in here]
    assert [row["finished"] for row in rows] == [row["finished"] for row in here]
    assert all(row["retokenised"] for row in rows)
    assert all(row["ids"][-1] == word_tokenizer().eos_token_id for row in rows if row["finished"])
    assert read_json(SAMPLED[1])["retokenised_fraction"] == 1.0
    assert capsys.readouterr().err.count("gives no token ids: texts are tokenised again") == 1
    assert running.calls == len(rows)


# ---- the file -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": "there"}, "shards: expected one of here, processes, ray, found 'there'"),
        ({"workers": 0}, "workers: expected at least 1, found 0"),
        ({"workers": 2}, "workers: expected 1 with shards: here, where the stage's own process computes one shard after the other, found 2. Set it"),
        ({"gpus": 4}, "gpus: expected 0 with shards: here, where the stage's own process computes one shard after the other, found 4. Set it to 0"),
        ({"shards": "processes", "node_wait_seconds": 9.0}, "node_wait_seconds: expected 0 with shards: processes, which waits for no node, found 9"),
        ({"server": Server(model="{name}")}, "server.model: expected a name in which braces hold policy or digest, found '{name}'"),
        ({"server": Server(concurrency=0)}, "server.concurrency: expected at least 1, found 0"),
    ],
)  # fmt: skip
def test_an_engine_whose_values_do_not_fit_says_so(changes: dict[str, Any], message: str) -> None:
    [complaint] = problems(Engine(**changes))
    assert message in complaint


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("concurrency: 64", "unknown key 'concurrency'. Known: server, shards, workers"),
        ("server: {concurency: 64}", "server: unknown key 'concurency'. Did you mean 'concurrency'?"),
    ],
)
def test_a_servers_values_without_a_server_are_refused(own_conf: Path, values: str, message: str) -> None:
    """Otherwise somebody who forgets the server samples for days on one GPU."""
    (own_conf / "engine/here.yaml").write_text(f"defaults: [engine_schema, _self_]\n{values}\n")
    [error] = recipe_errors(load_params())
    assert error.startswith(f"conf/engine/here.yaml: {message}")


def test_workers_on_ray_take_the_servers_address_from_their_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENGINE_BASE_URL", raising=False)
    monkeypatch.setattr("plumbline.pipeline.engine.find_spec", lambda name: name)
    assert [*engine_lacks(Engine(Server(), shards="ray"))] == []
    [complaint] = engine_lacks(Engine(Server(), shards="processes", workers=2))
    assert complaint.startswith(
        "server.base_url: expected the server's address here or in the environment variable ENGINE_BASE_URL"
    )
    with pytest.raises(ValueError, match=r"^engine\.server\.base_url: expected the server's address"):
        address_of(Server())


def test_an_address_with_a_secret_is_refused_without_repeating_it() -> None:
    with pytest.raises(ValueError, match=r"engine\.server\.base_url: expected an address alone") as refused:
        Server(base_url="http://me:hunter2@127.0.0.1:8000/v1")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("name", sorted(file.stem for file in (CONF / "engine").glob("*.yaml")))
def test_every_engine_is_sound(name: str) -> None:
    assert problems(engine_of(name)) == []


@pytest.mark.usefixtures("project")
def test_check_asks_for_the_servers_address_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENGINE_BASE_URL", raising=False)
    params: Any = load_params() | {"engine": "vllm"}
    [error] = recipe_errors(params)
    assert error.startswith(
        "conf/engine/vllm.yaml: server.base_url: expected the server's address here or in the environment variable ENGINE_BASE_URL"
    )
    monkeypatch.setenv("ENGINE_BASE_URL", "http://127.0.0.1:8000/v1")
    assert recipe_errors(params) == []
    assert recipe_errors(params | {"engine": "vlm"}) == [
        "params.yaml: engine: expected the name of a file of conf/engine, found 'vlm'. Did you mean 'vllm'? There are: here, processes, ray, vllm"
    ]


@pytest.mark.usefixtures("project")
def test_an_older_params_yaml_is_told_which_line_to_add() -> None:
    params = load_params()
    del params["engine"]
    assert recipe_errors(params) == [
        "params.yaml: expected a section 'engine', found none. Add the line `engine: here`: each stage then generates in its own process, as before"
    ]


def test_the_name_that_a_server_has_to_give_is_printed(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["served_name", "vllm", "sft"])
    served_name_tool.main()
    assert capsys.readouterr().out.strip() == served_name(Server(), POLICY)
