"""Conversations written as one text, such as "\\n\\nHuman: …\\n\\nAssistant:" or "<|im_start|>user …", as turns.

A text is a transcript if it begins with the mark of a speaker. It is read where its turns are certain, and refused otherwise: a model must
not learn another template's marks as words. A text that mentions such a mark in a sentence is not a transcript.
"""

import re
from typing import NamedTuple

from plumbline.data.faults import RowFault
from plumbline.data.fields import ROLES
from plumbline.rows import Message, Row

_NAMES = {
    "user": "inst instruction question 사용자 질문 명령어",
    "assistant": "/inst ai chatbot response answer output 어시스턴트 답변 응답",
    "system": "system_prompt",
    "input": "input context 입력",
}
_ROLES = {**ROLES, **{name: role for role, names in _NAMES.items() for name in names.split()}}
"""What a mark calls the speaker, in lower case -> the role; `input` belongs to the user's turn before it."""

_SPEAKERS = "Human|User|Assistant|AI|Bot|Chatbot|System|사용자|어시스턴트"


class Style(NamedTuple):
    """How one family of transcripts marks the speaker of a turn."""

    mark: re.Pattern[str]
    """Matches a mark; the group that takes part in the match is the speaker."""
    hints: tuple[str, ...]
    """What a text with such marks contains: quicker to look for."""
    is_words: bool = True
    """Whether the marks are plain words, which also occur in texts that are not transcripts."""

    def marks_in(self, text: str) -> list[re.Match[str]]:
        """The marks in a text, in order."""
        return list(self.mark.finditer(text)) if any(hint in text for hint in self.hints) else []


_TOKENS = Style(
    re.compile(
        "|".join(
            (
                r"<\|im_start\|>(\w+)[ \t]*\n?",  # ChatML: Qwen, SmolLM, Yi
                r"<\|im_(user|assistant|system)\|>\w*<\|im_middle\|>",  # Kimi
                r"<\|(?:start_header_id|header_start)\|>\s*(\w+)\s*<\|(?:end_header_id|header_end)\|>\s*",  # Llama 3 and 4
                r"<(?:start_of_turn|\|turn)>(\w+)[ \t]*\n?",  # Gemma
                r"<\|start\|>(\w+)(?:<\|channel\|>final)?<\|message\|>",  # gpt-oss
                r"<\|START_OF_TURN_TOKEN\|><\|(\w+?)_TOKEN\|>",  # Command R
                r"<[|｜](system|user|assistant|human|prompter|bot|model)[|｜]>(?::|[ \t]*\n)?",  # Zephyr, Phi, OpenAssistant, DeepSeek
                r"<(human|bot)>:",  # OpenChatKit
                r"\[\|(system|user|assistant|human|ai)\|\]",  # EXAONE, Baize
                r"\[(/?INST|SYSTEM_PROMPT)\]",  # Llama 2, Mistral
                r"GPT4 Correct (User|Assistant):",  # OpenChat
            )
        ),
        re.IGNORECASE,
    ),
    ("<", "[", "GPT4"),
    is_words=False,
)
_HEADINGS = Style(
    re.compile(
        r"#{2,3} ?(Instruction|Question|Input|Context|Response|Output|Answer|Human|User|Assistant|System|명령어|질문|입력|응답|답변)"
        r"[ \t]*[:\uff1a][ \t]*\n?"
    ),
    ("##",),
)
_NAMED = ("Human", "User", "System", "사용자")
_PARAGRAPHS = Style(re.compile(rf"(?:^|\n\s*\n)[ \t]*({_SPEAKERS})[:\uff1a][ \t]?"), _NAMED)  # HH-RLHF, Claude 1
_LINES = Style(re.compile(rf"(?:^|\n)[ \t]*({_SPEAKERS})[:\uff1a][ \t]?"), _NAMED)
_CAPITALS = Style(re.compile(r"(?:^|\s|</s>)(USER|ASSISTANT):[ \t]?"), ("USER:",))  # Vicuna
_STYLES = (_TOKENS, _HEADINGS, _PARAGRAPHS, _LINES, _CAPITALS)

_PREAMBLES = ("Below is an instruction", "A chat between a curious", "아래는 작업을 설명하는 명령어")
"""How the system turns begin that Alpaca, Vicuna and KoAlpaca write before the first mark (FastChat's `system_message`)."""

_BEGINNING = re.compile(
    r"(?:\s|<s>|<bos>|<\|begin_of_text\|>|<\|startoftext\|>|<\|endoftext\|>|<BOS_TOKEN>|<[|｜]begin▁of▁sentence[|｜]>|\[gMASK\]|<sop>)*"
)
_CLOSING = (
    r"<\|im_end\|>|<\|eot_id\|>|<\|eom_id\|>|<\|eot\|>|<end_of_turn>|<turn\|>|<\|end\|>|<\|return\|>|<\|END_OF_TURN_TOKEN\|>|<\|end_of_turn\|>"
    r"|<\|endoftext\|>|<\|end_of_text\|>|<[|｜]end▁of▁sentence[|｜]>|\[\|endofturn\|\]|\[/SYSTEM_PROMPT\]|<eos>"
)
_ENDING = re.compile(rf"(?:\s|</?s>|{_CLOSING})*\Z")
_LEFT_OVER = re.compile(rf"</?s>|<</?SYS>>|<\|channel\|>|{_CLOSING}|{_TOKENS.mark.pattern}", re.IGNORECASE)
_CLOSED_ANSWER = re.compile(rf"(?:{_CLOSING})\s*\Z")
_TOKEN_AT_LINE_START = re.compile(rf"^[ \t]*(?:{_TOKENS.mark.pattern})", re.IGNORECASE | re.MULTILINE)
_LONE_HUMAN = re.compile(r"Human[:\uff1a]")
_LLAMA_SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)


def turns_in(text: str) -> list[Message] | None:
    """The turns of a transcript, without the header of an answer that is yet to be given; None for a text that is not a transcript.

    Raises:
        RowFault: the text is a transcript, but its turns are not certain.
    """
    body = text[_BEGINNING.match(text).end() :]  # type: ignore[union-attr]
    for style in _STYLES:
        marks = style.marks_in(body)
        roles = [_role(mark) for mark in marks]
        if not marks:
            continue
        if marks[0].start() == 0 and _is_certain_start(style, marks, roles, after_blank_line=text.startswith("\n\n")):
            return _turns(body, marks, roles)
        is_open = roles[-1] == "assistant" and not body[marks[-1].end() :].strip()
        if style.is_words and is_open and "user" in roles and (style is not _CAPITALS or body.startswith(_PREAMBLES)):
            return _turns(body, marks, roles)
        if not style.is_words and (is_open or _TOKEN_AT_LINE_START.search(body)):
            raise _uncertain(f"{marks[0][0].strip()!r} after other text", text)
    if _LONE_HUMAN.match(body):
        raise _uncertain("'Human:' without an answer's mark", text)
    return None


def _role(mark: re.Match[str]) -> str:
    speaker = next(group for group in mark.groups() if group).lower()
    return _ROLES.get(speaker, speaker)


def _is_certain_start(style: Style, marks: list[re.Match[str]], roles: list[str], *, after_blank_line: bool) -> bool:
    """Whether a text that begins with a mark is a transcript: words need an answer's mark too, unless one form of theirs is plain."""
    if not style.is_words or (roles[0] in ("user", "system") and "assistant" in roles):
        return True
    is_instruction = style is _HEADINGS and next(filter(None, marks[0].groups())) in ("Instruction", "명령어")
    return is_instruction or (style is _LINES and after_blank_line and len(marks) == 1 and bool(_LONE_HUMAN.match(marks[0][0])))


def _turns(body: str, marks: list[re.Match[str]], roles: list[str]) -> list[Message]:
    preamble = body[: marks[0].start()].strip()
    if preamble and not preamble.startswith(_PREAMBLES):
        raise _uncertain(f"{marks[0][0].strip()!r} after other text", body)
    turns: list[Message] = [{"role": "system", "content": preamble}] if preamble else []
    ends = [*(mark.start() for mark in marks[1:]), len(body)]
    for role, mark, end in zip(roles, marks, ends, strict=True):
        content = _ENDING.sub("", body[mark.end() : end]).strip()
        if role == "user" and (system := _LLAMA_SYSTEM.match(content)):
            turns.append({"role": "system", "content": system[1].strip()})
            content = content[system.end() :].strip()
        if role == "input" and turns and turns[-1]["role"] == "user":
            turns[-1]["content"] += f"\n\n{content}" if content else ""
        else:
            turns.append({"role": role, "content": content})
    if turns[-1]["role"] == "assistant" and not turns[-1]["content"]:
        turns.pop()
    turns = [turn for turn in turns if turn["content"] or turn["role"] != "system"]
    dialogue = [turn["role"] for turn in turns if turn["role"] != "system"]
    if dialogue != (["user", "assistant"] * len(dialogue))[: len(dialogue)] or not dialogue:
        raise _uncertain(f"turns of {' '.join(turn['role'] for turn in turns)[:60] or 'nobody'}", body)
    for turn in turns:
        if not turn["content"]:
            raise _uncertain(f"an empty turn of the {turn['role']}", body)
        if left_over := _LEFT_OVER.search(turn["content"]):
            raise _uncertain(f"{left_over[0].strip()!r} inside a turn", body)
    return turns


def _uncertain(what: str, text: str) -> RowFault:
    return RowFault("transcript", f"{what}: {text[:80]!r}")


def unrolled(row: Row) -> Row:
    """A row whose only user turn is a transcript with the turns of that transcript; answers lose the format's white space and end marks."""
    column = "messages" if "messages" in row else "prompt"
    turns = row.get(column, [])
    users = [index for index, turn in enumerate(turns) if turn["role"] == "user"]
    if len(users) != 1 or not isinstance(turns[users[0]]["content"], str):
        return row
    parsed = turns_in(turns[users[0]]["content"])
    if parsed is None:
        return row
    answers: Row = {name: _without_marks(row[name]) for name in ("completion", "chosen", "rejected") if name in row}
    return {**row, column: [*turns[: users[0]], *parsed, *_without_marks(turns[users[0] + 1 :])], **answers}


def _without_marks(turns: list[Message]) -> list[Message]:
    return [{**turn, "content": _ENDING.sub("", turn["content"]).strip()} for turn in turns]


def answer_turns(text: str) -> list[Message] | None:
    """The turns of an answer that is a whole transcript in special tokens, or that begins with its own header; None for any other."""
    body = text[_BEGINNING.match(text).end() :]  # type: ignore[union-attr]
    if header := re.match(r"\n\nAssistant:[ \t]?", text):
        return [{"role": "assistant", "content": text[header.end() :].strip()}]
    mark = _TOKENS.mark.match(body)
    if mark is None:
        return None
    if _role(mark) != "assistant":
        return turns_in(text)
    content = _ENDING.sub("", body[mark.end() :]).strip()
    if left_over := _LEFT_OVER.search(content):
        raise _uncertain(f"{left_over[0].strip()!r} inside an answer", text)
    return [{"role": "assistant", "content": content}]


def refuse_marks(turn: Message, where: str) -> None:
    """Raises a RowFault if a turn still contains the marks of a transcript: all kinds in a user's turn, special tokens in any."""
    content = turn["content"]
    if turn["role"] == "user" and turns_in(content) is not None:
        raise _uncertain(f"{where}: a transcript among other turns", content)
    if not any(hint in content for hint in _TOKENS.hints):
        return
    if mark := _TOKEN_AT_LINE_START.search(content) or _CLOSED_ANSWER.search(content):
        raise _uncertain(f"{where}: {mark[0].strip()!r}", content)
