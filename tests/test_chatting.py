"""`make chat`: what it refuses, and the whole way of a vote, from the page in a browser to the policy that learns from it."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from plumbline.feedback.folder import FOLDER
from plumbline.feedback.talk import Draft, Speaker, Talk
from plumbline.models.decoding_values import Decoding
from plumbline.pipeline.records import read_json, read_jsonl
from plumbline.tools.chatting import port_problem, require_page, wrong_names
from tests.conftest import ROOT
from tests.dag import load_pipeline, load_recipe, touched
from tests.saying import said, save_named, say, vote

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = [name for name in ("nicegui", "playwright") if find_spec(name) is None] + ([] if CHROMIUM else ["chromium"])


@pytest.mark.parametrize(
    ("policy", "against", "message"),
    [
        ("", "", r"expected a policy, found none: make chat POLICY=dpo.* There are: base, sft"),
        (
            "sft",
            "sft",
            r"expected two different policies, found sft twice: leave AGAINST out, or name another\. There are: base, sft",
        ),
        ("dpo", "", r"found no artifacts/policy/dpo: `dvc repro align@dpo` trains it"),
        ("sft", "ppo", r"found no artifacts/policy/ppo: `dvc repro rl@ppo` trains it"),
        ("sft", "gone", r"found no artifacts/policy/gone: the recipe in params\.yaml has no such policy\. There are: base, sft"),
    ],
)
def test_policies_that_cannot_be_talked_to_are_refused_with_a_remedy(
    project: Path, policy: str, against: str, message: str
) -> None:
    save_named("base", "sft")
    with pytest.raises(ValueError, match=message):
        raise ValueError(wrong_names(policy, against, load_recipe("default")))
    assert wrong_names("base", "sft", load_recipe("default")) == ""


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert port_problem(port).startswith(f"expected a free port, found that {port} cannot be used (")
    assert port_problem(port) == ""
    assert "name another, such as PORT=8090" in port_problem(99_999)


def test_a_missing_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plumbline.tools.chatting.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r'found no nicegui: run `pip install "\.\[chat\]"` in the project\'s environment'):
        require_page()


def test_only_recipes_that_learn_from_feedback_depend_on_it() -> None:
    for file in sorted((ROOT / "conf/recipe").glob("*.yaml")):
        nodes = touched("data/feedback/chat.jsonl", load_pipeline(), load_recipe(file.stem))
        assert nodes == ({"feedback@said"} if file.stem == "feedback" else set()), file.stem


# --- an answer that fails -------------------------------------------------------------------------------------------------


async def ask_twice(speakers: tuple[Speaker, ...]) -> None:
    """Asks on the page, where the first answer fails; the question comes back, and is asked again."""
    from nicegui import ui
    from nicegui.testing.user_simulation import user_simulation

    from plumbline.tools.chat_page import Page

    pages = []
    async with user_simulation(lambda: pages.append(Page(Talk(speakers)))) as user:
        await user.open("/")
        user.find(kind=ui.textarea).type("What?")
        [page] = pages
        user.find(marker="send").click()
        for _ in range(100):
            await asyncio.sleep(0.05)
            if page.send.enabled and page.send.visible:
                break
        assert page.talk.turns == []
        assert page.question.value == "What?"
        assert page.question.enabled
        assert not page.stop.visible
        await user.should_not_see("…")
        user.find(marker="send").click()
        await user.should_see("A is better" if len(speakers) == 2 else "Correct")
        assert [turn["content"] for turn in page.talk.turns[0].messages] == ["What?"]
        assert {draft.text for draft in page.talk.turns[0].drafts} == {"Four."}


@pytest.mark.skipif(find_spec("nicegui") is None, reason="needs nicegui")
@pytest.mark.parametrize("names", [("dpo",), ("dpo", "sft")])
@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), ValueError("expected at most 5 tokens"), KeyError("x")])
def test_a_question_whose_answer_fails_comes_back_and_can_be_asked_again(
    names: tuple[str, ...], error: Exception, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing: Any = None
    failed = set()

    def answer(policy: Speaker, *_: Any) -> Iterator[Draft]:
        yield Draft("Fo", 1, False)
        if policy.name not in failed:
            failed.add(policy.name)
            raise error
        yield Draft("Four.", 2, True)

    monkeypatch.setattr("plumbline.tools.chat_page.answer", answer)
    asyncio.run(ask_twice(tuple(Speaker(name, "0" * 16, nothing, nothing, Decoding(), 8) for name in names)))


# --- the whole way --------------------------------------------------------------------------------------------------------


class Project:
    """A copy of the checkout with the recipe `feedback`, made small."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for file in files.stdout.splitlines():
            if (ROOT / file).is_file() and not file.endswith("dvc.lock"):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / file, folder / file)
        recipe = load_recipe("feedback")
        recipe |= {"model": "nano", "prepare": {"scale": 0.02}, "pretrain": {"max_steps": 40}, "sft": {"max_steps": 20}}
        recipe["align"]["kto"]["max_steps"] = 2
        recipe["evaluate"] |= {"max_new_tokens": 16}
        OmegaConf.save(OmegaConf.create(recipe), folder / "params.yaml")
        shutil.rmtree(folder / FOLDER)
        (folder / FOLDER).mkdir()
        paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
        self.environment = {**os.environ, "PATH": os.pathsep.join(paths), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        for variable in ("WARM_PROCESS", "PYTEST_CURRENT_TEST"):  # the second makes NiceGUI serve a test of its own
            self.environment.pop(variable, None)
        self.run("git", "init", "-q")

    def run(self, *command: str, fails: bool = False) -> str:
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False)
        assert (done.returncode != 0) == fails, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout + done.stderr

    @contextmanager
    def chat(self, *policies: str) -> Iterator[str]:
        """The address of the page, which is served meanwhile."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "plumbline.tools.chatting", *policies, "--port", str(port)]
        with (self.folder / "chat.log").open("w") as log:
            server = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 120
            while not _answers(port):
                assert server.poll() is None, (self.folder / "chat.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()
            server.wait(30)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


def ask(page: Any, question: str, waits_for: str) -> None:
    page.get_by_placeholder("Ask something").fill(question)
    page.keyboard.press("Enter")
    page.get_by_role("button", name=waits_for).last.wait_for(timeout=60_000)


def say_on_the_page(browser: Any, address: str) -> None:
    """A conversation on a phone with all that can be said, and a vote in a second tab meanwhile."""
    page = browser.new_page(viewport={"width": 390, "height": 844})
    foreign: list[str] = []
    page.on("request", lambda request: None if request.url.startswith((address, "data:")) else foreign.append(request.url))
    page.goto(address)
    ask(page, "What is 7 plus 5?", "A is better")
    assert page.get_by_text("sft").count() + page.get_by_text("base").count() == 0  # blind
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.get_by_role("button", name="B is better").click()
    page.get_by_text("Your vote: B is better").wait_for()
    assert page.get_by_text("A · ").count() == page.get_by_text("B · ").count() == 1
    page.get_by_role("button", name="Good answer").last.click()
    page.get_by_role("button", name="Correct").first.click()
    page.get_by_role("dialog").get_by_role("textbox").fill("It is 12.")
    page.get_by_role("button", name="Save").click()
    page.get_by_text("Corrected: It is 12.").wait_for()
    other = browser.new_page()
    other.goto(address)
    ask(other, "What is 2 plus 3?", "Tie")
    other.get_by_role("button", name="Tie", exact=True).click()
    other.get_by_text("Your vote: Tie").wait_for()
    ask(page, "And 8 plus 5?", "Both are bad")
    page.get_by_role("button", name="Both are bad").click()
    page.get_by_text("Your vote: Both are bad").wait_for()
    assert foreign == []


def require_learnt(project: Project) -> None:
    """What was said is in the rows and in the counts, and trains a policy; nothing that does not depend on it runs."""
    output = project.run("dvc", "repro", "align@kto")
    assert "Running stage 'feedback@said'" in output
    assert "Running stage 'align@kto'" in output
    assert not any(f"Running stage '{stage}'" in output for stage in ("prepare", "pretrain", "sft"))
    rows = [row for split in ("train", "validation") for row in read_jsonl(f"artifacts/feedback/said/{split}.jsonl")]
    labels = {row["completion"][0]["content"]: row["label"] for row in rows if row["source"] == "chat.jsonl"}
    assert labels["It is 12."] is True
    counts = read_json("artifacts/figures/feedback/said.json")
    assert (counts["vote.B"], counts["vote.tie"], counts["vote.both_bad"], counts["thumb.up"], counts["correction"]) == (
        1,
        1,
        1,
        1,
        1,
    )
    assert (project.folder / "artifacts/policy/kto/model.safetensors").is_file()
    assert "up to date" in project.run("dvc", "status", "feedback@said", "align@kto")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")
def test_a_vote_on_the_page_becomes_a_row_and_the_next_policy_learns_from_it(
    tmp_path: Path, browser: Any, monkeypatch: Any
) -> None:
    project = Project(tmp_path / "project")
    monkeypatch.chdir(project.folder)
    output = project.run("dvc", "repro", "feedback@said", fails=True)
    assert (
        "feedback@said: expected feedback in data/feedback/*.jsonl, found none. Give some with `make chat POLICY=sft`" in output
    )

    with project.chat("sft", "--against", "base") as address:
        say_on_the_page(browser, address)
    lines = said()
    assert [(line["kind"], line["verdict"]) for line in lines] == [
        ("vote", "B"), ("thumb", "up"), ("correction", "It is 12."), ("vote", "tie"), ("vote", "both_bad"),
    ]  # fmt: skip
    assert [turn["content"] for turn in lines[4]["messages"]] == ["What is 7 plus 5?", "It is 12.", "And 8 plus 5?"]
    say(*(vote(str(number)) for number in range(60)), file="others.jsonl")  # for both splits
    require_learnt(project)
