"""The page of `make chat`: questions, streamed answers of one policy or of two side by side, votes, thumbs and corrections.

NiceGUI serves it with all its scripts, styles and fonts, so that it needs no network. What policies answer is shown as text and never as HTML.
Every tab has a conversation of its own. What is said is on the disk before the page shows that it was taken.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from nicegui import run, ui

from plumbline.feedback.folder import CHAT, FOLDER, append
from plumbline.feedback.lines import BOTH_BAD, DOWN, TIE, UP, A, B, Line
from plumbline.feedback.talk import LARGEST_SEED, Draft, Speaker, Talk, Turn, answer

REDRAW_SECONDS = 0.05
"""How often a growing answer is drawn anew, at most."""

VOTES = ((A, "A is better"), (TIE, "Tie"), (B, "B is better"), (BOTH_BAD, "Both are bad"))

_SEND = "(event) => { if (!event.isComposing) { event.preventDefault(); emit(); } }"
"""Enter sends, but not the one that completes a Hangul syllable."""

_SCROLL = "window.scrollTo(0, document.body.scrollHeight)"
_TEXT = "whitespace-pre-wrap break-words"
_WIDTH = "w-full max-w-4xl mx-auto"
_FAINT = "text-xs text-gray-600 dark:text-gray-400"

_STYLE = """
.q-footer { background-color: #ffffff }
.body--dark .q-footer { background-color: #121212 }
.body--dark .q-btn.text-primary { --q-primary: #9cc3ea }
"""
"""The ground of the footer, and the words of buttons without a filling on a dark ground."""


def serve(speakers: tuple[Speaker, ...], port: int) -> None:
    """Serves the page on 127.0.0.1 until it is interrupted."""

    ui.add_css(_STYLE, shared=True)

    @ui.page("/", title="Plumbline: chat")  # type: ignore[untyped-decorator]
    def page() -> None:
        Page(Talk(speakers))

    ui.run(
        host="127.0.0.1",
        port=port,
        title="Plumbline: chat",
        favicon="💬",
        dark=None,  # as the browser prefers
        reload=False,
        show=False,
        show_welcome_message=False,
    )


def latest(drafts: Iterator[Draft]) -> Draft | None:
    """The newest draft after REDRAW_SECONDS, None once there are no more."""
    newest, until = None, time.monotonic() + REDRAW_SECONDS
    for draft in drafts:
        newest = draft
        if time.monotonic() > until:
            break
    return newest


class Page:
    """One tab: its conversation, and the elements that change."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.answering: Turn | None = None
        self.client = ui.context.client
        ui.colors(primary="#2f5d8a")  # white text on it has a contrast of 6.7 to 1
        with ui.header().classes("items-center py-2"), ui.row().classes(f"{_WIDTH} items-center no-wrap"):
            ui.label(self._title()).classes("text-base font-medium grow")
            ui.button("New", icon="add", on_click=self.begin).props(
                'flat dense no-caps color=white aria-label="New conversation"'
            )
        self.log = ui.column().classes(f"{_WIDTH} gap-4 pb-4")
        with ui.footer().classes("py-2"), ui.card().classes(f"{_WIDTH} p-2 gap-1"):
            with ui.row().classes("w-full items-end no-wrap gap-2"):
                self._draw_question()
            with ui.row().classes("w-full items-center no-wrap gap-2"):
                ui.label(self._decoding()).classes(f"{_FAINT} grow")
                self._draw_seed()
        self.begin()

    def _draw_question(self) -> None:
        self.question = ui.textarea(placeholder="Ask something").props("autogrow dense outlined rows=1").classes("grow")
        self.question.on("keydown.enter.exact", self.ask, js_handler=_SEND)
        self.send = ui.button(icon="send", on_click=self.ask).props('round dense aria-label="Send"').mark("send")
        self.stop = ui.button(icon="stop", on_click=self.cut_off).props('round dense aria-label="Stop"')

    def _draw_seed(self) -> None:
        start = random.SystemRandom().randrange(1_000_000)
        self.seed = ui.number("Seed", value=start, min=0, max=LARGEST_SEED - 1, precision=0)
        self.seed.props("dense borderless").classes("w-28").tooltip("The same seed and question give the same answer")

    def _title(self) -> str:
        speakers = self.talk.speakers
        return speakers[0].name if len(speakers) == 1 else "Two hidden policies"

    def _decoding(self) -> str:
        words = {f"{speaker.decoding.words}, at most {speaker.max_new_tokens} tokens" for speaker in self.talk.speakers}
        return words.pop() if len(words) == 1 else "each by its own decoding"

    def begin(self) -> None:
        """A new conversation."""
        self.cut_off()
        self.talk = Talk(self.talk.speakers)
        self.log.clear()
        with self.log:
            alone = len(self.talk.speakers) == 1
            todo = "Rate or correct the answers." if alone else "Vote to see which policy is which, and to go on."
            ui.label(f"{todo} What you say is written to {FOLDER / CHAT}.").classes(f"{_FAINT} mt-4")
        self.wait_for("question")

    def wait_for(self, what: str) -> None:
        """Shows what can be done next: ask a `question`, `vote`, or `stop` the answers."""
        self.send.set_visibility(what != "stop")
        self.stop.set_visibility(what == "stop")
        for element in (self.question, self.send):
            element.set_enabled(what == "question")
        self.question.props(f'placeholder="{"Vote to go on" if what == "vote" else "Ask something"}"')

    def cut_off(self) -> None:
        """Stops the answers that are being drawn."""
        self.answering = None

    async def ask(self) -> None:
        """Asks the policies, and shows their answers as they grow. A question whose answers fail comes back, to be asked again."""
        talk, question = self.talk, self.question.value or ""
        try:
            turn = talk.ask(question, int(self.seed.value if self.seed.value is not None else -1))
        except ValueError as error:
            ui.notify(str(error), type="warning")
            return
        self.answering = turn
        self.wait_for("stop")
        self.question.set_value("")
        with self.log, ui.column().classes("w-full gap-4") as shown:
            ui.label(turn.messages[-1]["content"]).classes(
                f"{_TEXT} self-end rounded-xl px-4 py-2 bg-primary text-white max-w-[85%]"
            )
            cards = TurnCards(turn, partial(self.wait_for, "question"))
        try:
            await asyncio.gather(*(self._speak(turn, index, cards) for index in range(len(turn.speakers))))
        except ValueError as error:
            self._take_back(talk, question, shown)
            ui.notify(str(error), type="warning", multi_line=True)
        except Exception as error:  # such as a GPU without memory
            self._take_back(talk, question, shown)
            ui.notify(
                f"expected an answer, found {type(error).__name__}: {str(error)[:200]}. The terminal says where it arose. Ask again, or shorten the "
                "conversation if memory ran out",
                type="negative",
                multi_line=True,
            )
            raise
        else:
            self._offer(talk, turn, cards)

    def _offer(self, talk: Talk, turn: Turn, cards: "TurnCards") -> None:
        """Lets answers that are complete be rated, unless another conversation has begun meanwhile."""
        if talk is self.talk:
            self.seed.set_value((turn.seed + 1) % LARGEST_SEED)
            cards.offer()
            self.client.run_javascript(_SCROLL)
            self.wait_for("question" if turn.is_settled else "vote")

    def _take_back(self, talk: Talk, question: str, shown: Any) -> None:
        """Makes a question whose answers failed one that was never asked, unless another conversation has begun meanwhile."""
        talk.turns.pop()
        if talk is self.talk:
            self.cut_off()
            shown.delete()
            self.question.set_value(question)
            self.wait_for("question")

    async def _speak(self, turn: Turn, index: int, shown: "TurnCards") -> None:
        drafts = answer(turn.speakers[index], turn.messages, turn.seed)
        while self.answering is turn and (draft := await run.io_bound(latest, drafts)) is not None:
            turn.drafts[index] = draft
            shown.draw(index)
            self.client.run_javascript(_SCROLL)


class TurnCards:
    """The answers of one turn side by side, below each other on a phone, with what can be said of them."""

    def __init__(self, turn: Turn, settled: Callable[[], None]) -> None:
        self.turn, self.settled = turn, settled
        self.names: list[Any] = []
        self.texts: list[Any] = []
        self.buttons: list[Any] = []
        columns = "grid-cols-1 sm:grid-cols-2" if len(turn.speakers) == 2 else "grid-cols-1"
        with ui.element("div").classes(f"grid {columns} gap-3 w-full"):
            for index in range(len(turn.speakers)):
                with ui.card().classes("w-full gap-1 p-3").mark(f"answer-{index}"):
                    self.names.append(ui.label(self._name(index)).classes(_FAINT))
                    self.texts.append(ui.label("…").classes(_TEXT))
                    self.buttons.append(ui.row().classes("w-full items-center gap-1"))
        self.votes = ui.row().classes("w-full justify-center gap-2")

    def _name(self, index: int) -> str:
        letter, speaker = f"{'AB'[index]} · " if len(self.turn.speakers) == 2 else "", self.turn.speakers[index]
        return f"{letter}{speaker.name}" if self.turn.is_settled else letter.removesuffix(" · ")

    def draw(self, index: int) -> None:
        """Shows an answer as it is now."""
        self.texts[index].set_text(self.turn.drafts[index].text.strip())

    def offer(self) -> None:
        """Offers thumbs, corrections and votes, now that the answers are complete."""
        for index, row in enumerate(self.buttons):
            draft = self.turn.drafts[index]
            if not draft.text.strip():
                self.texts[index].set_text("(no words)")
            with row:
                for verdict, icon, label in ((UP, "thumb_up", "Good answer"), (DOWN, "thumb_down", "Bad answer")):
                    button = ui.button(icon=icon, on_click=partial(self._thumb, index, verdict))
                    button.props(f'flat round dense size=sm color=grey aria-label="{label}"').mark(f"{verdict}-{index}")
                ui.button("Correct", icon="edit", on_click=partial(self._edit, index)).props("flat dense no-caps size=sm")
                ended = "" if draft.finished else ", cut off"
                ui.label(f"seed {self.turn.seed} · {draft.tokens} tokens{ended}").classes(f"{_FAINT} ml-auto")
        if not self.turn.is_settled:
            with self.votes:
                for verdict, label in VOTES:
                    ui.button(label, on_click=partial(self._vote, verdict)).props("outline no-caps")

    def _vote(self, verdict: str) -> None:
        if take(self.turn.voted(verdict)):
            self.votes.clear()
            with self.votes:
                ui.label(f"Your vote: {dict(VOTES)[verdict]}").classes(_FAINT)
            for index, name in enumerate(self.names):
                name.set_text(self._name(index))
            self.settled()
        else:
            self.turn.vote = None

    def _thumb(self, index: int, verdict: str) -> None:
        if take(self.turn.thumbed(index, verdict)):
            for element in self.buttons[index]:
                if isinstance(element, ui.button) and element.icon.startswith("thumb"):
                    element.props(f"color={'primary' if element.icon == f'thumb_{verdict}' else 'grey'}")

    def _edit(self, index: int) -> None:
        start = self.turn.corrections.get(index, self.turn.drafts[index].text)
        with ui.dialog(value=True) as dialog, ui.card().classes("w-full max-w-xl"):
            ui.label("What should it have said?").classes("font-medium")
            text = ui.textarea(value=start).props("autogrow outlined autofocus").classes("w-full")
            with ui.row().classes("w-full justify-end"):
                ui.button("Cancel", on_click=dialog.close).props("flat no-caps")
                ui.button("Save", on_click=lambda: self._correct(index, text.value or "", dialog)).props("no-caps")

    def _correct(self, index: int, text: str, dialog: Any) -> None:
        before = dict(self.turn.corrections)
        try:
            line = self.turn.corrected(index, text)
        except ValueError as error:
            ui.notify(str(error), type="warning")
            return
        if take(line):
            dialog.close()
            self.texts[index].set_text(f"{self.turn.drafts[index].text.strip()}\n\nCorrected: {line.verdict}")
        else:
            self.turn.corrections = before


def take(line: Line) -> bool:
    """Writes a line, and says so if it cannot be written."""
    try:
        append(FOLDER / CHAT, [line])
    except ValueError as error:
        ui.notify(f"{error}. Nothing was saved", type="negative")
        return False
    except OSError as error:
        ui.notify(
            f"expected to write to {FOLDER / CHAT}, found: {error}. Nothing was saved: make room or set its permissions",
            type="negative",
        )
        return False
    return True
