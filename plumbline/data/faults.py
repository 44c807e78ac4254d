"""What can be wrong with data: with a file, which stops the stage, or with a row, which is dropped and counted by its reason."""

from typing import NamedTuple


class DataError(ValueError):
    """Data that cannot be prepared: what was expected, what was found, where, and what to do."""


class Fault(NamedTuple):
    """Why a row cannot be used: a key of REASONS, and what was found in the row."""

    reason: str
    detail: str


class RowFault(ValueError):
    """Raised for a row that cannot be used; `fault` says why."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.fault = Fault(reason, detail)


class Reason(NamedTuple):
    """Why rows are dropped, and what a user can do about it."""

    what: str
    remedy: str


REASONS = {
    # reading
    "invalid_json": Reason("a line is not valid JSON", "correct or delete the line"),
    "invalid_utf8": Reason("a line is not valid UTF-8", "set `encoding` for the source, or convert the file"),
    "invalid_csv": Reason("a CSV record cannot be parsed", "correct its quotes"),
    "line_too_long": Reason("a line is longer than policy.line_mib", "raise policy.line_mib, or delete the line"),
    "duplicate_key": Reason("an object has the same key twice", "delete one of them: most parsers silently keep the last"),
    "not_an_object": Reason("a row is not an object", "each row must be an object with named fields"),
    "ragged_row": Reason("a CSV row has more or fewer cells than the header", "quote cells that contain separators"),
    # format
    "missing_field": Reason(
        "a field of the format is missing or null", "name the right `format`, map `fields`, or clean the file"
    ),
    "wrong_type": Reason("a field has the wrong type", "name the right `format`, map `fields`, or clean the file"),
    "unknown_role": Reason("a message has an unknown role", "rename the roles to system, user and assistant"),
    "no_prompt": Reason("there is no prompt", "map a prompt in `fields`"),
    "ambiguous_answer": Reason("a prompt's `answer` can be read in two ways", "write it as the detail says"),
    "bad_instruction": Reason("one of a prompt's `instructions` cannot be checked", "write it as the detail says"),
    "transcript": Reason(
        "a text contains the marks of a conversation that cannot be read with certainty",
        "store the turns as a list of messages with role and content",
    ),
    "reasoning": Reason(
        "an answer's reasoning is in a key of its own",
        "write it into the content, between the marks that your model uses, such as <think> and </think>",
    ),
    "prompts_differ": Reason("chosen and rejected answer different prompts", "such pairs cannot be compared: clean the file"),
    "no_preference": Reason(
        "there is no verdict, or a tie", "map `positive` and `negative` if the rows do state a preference; otherwise none"
    ),
    "wrong_kind": Reason("the role needs another kind of data", "list the source under another role"),
    "undesirable": Reason(
        "the answer is labelled bad, so it is not a demonstration", "list the source under `unpaired` to use it"
    ),
    "untrained": Reason("no answer may be trained on (weight: 0, train: false)", "none needed"),
    "against_scores": Reason(
        "chosen has a lower score than rejected", "clean the file, or map `fields` so that the better one is chosen"
    ),
    # content
    "empty_turn": Reason("a turn has no text", "clean the file"),
    "role_order": Reason("turns do not alternate as [system] user assistant … user", "clean the file"),
    "no_completion": Reason("the last turn is not the assistant's", "cut the conversation after an assistant turn"),
    "unfinished": Reason(
        "the better answer was cut off", "raise evaluate.max_new_tokens in params.yaml before the next answers are given"
    ),
    "identical": Reason("chosen equals rejected", "such pairs teach nothing: clean the file"),
    "bad_text": Reason("NUL, control or broken characters", "clean the file: it was decoded wrongly, or cut off"),
    "personal_data": Reason("e-mail address, phone or resident number", "set policy.personal_data to mask or report"),
    # rendering
    "special_token": Reason(
        "the text contains one of the tokenizer's special tokens", "remove it: it would act as a real turn mark"
    ),
    "template": Reason(
        "the chat template refuses, drops or changes a turn", "use a template that renders it, or remove such turns"
    ),
    "end_of_turn": Reason("a turn does not end in exactly one end-of-turn token", "use a template that writes it once"),
    "no_loss": Reason("there is no token to train on", "clean the file"),
    "too_long": Reason("longer than the model's context", "raise context_tokens, or set policy.too_long to truncate"),
    # selection
    "duplicate": Reason("repeats an earlier row", "none needed; policy.duplicates: report keeps such rows"),
    "near_duplicate": Reason("nearly repeats an earlier row", "none needed; policy.near_duplicates: report keeps such rows"),
    "evaluation_overlap": Reason(
        "contains an evaluation prompt", "look whether the source holds the evaluation data, and take them out of it"
    ),
    "mixture": Reason("over the source's share of the mixture", "none needed; remove `weight` to keep all rows"),
}
