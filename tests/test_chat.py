"""The one chat template: what the model reads, where loss is, and the tokenizers that are made for it."""

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest
from chat_families import byte_level
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from plumbline.methods.offline.kto import KtoConfig, encode_labels
from plumbline.methods.offline.orpo import orpo_row
from plumbline.models.chat import (
    ASSISTANT,
    DEFAULT_TEMPLATE,
    END,
    PAD,
    SYSTEM,
    TINY_TEMPLATE,
    USER,
    ChatTemplateError,
    completion_ids,
    encode_demonstrations,
    encode_pairs,
    encode_preferences,
    encode_turns,
    end_of_turn_id,
    prompt_ids,
    render,
    token_pieces,
)
from plumbline.models.tokenizers import SMALLEST_VOCABULARY, load_tokenizer, make_ready, train_tokenizer
from plumbline.models.training import takes_ids

TEXTS = ["What is 12 plus 34? It is 46.", "안녕하세요, 무엇을 도와드릴까요?", "def f(x):\n    return x + 1"] * 20
SYSTEM_TURN = {"role": "system", "content": "Be brief."}
PROMPT = [{"role": "user", "content": "What is 12 plus 34?"}]
COMPLETION = [{"role": "assistant", "content": "It is 46."}]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, 400)


def test_the_template_marks_each_turn_and_ends_it(tokenizer: PreTrainedTokenizerFast) -> None:
    text = render(tokenizer, [SYSTEM_TURN, *PROMPT, *COMPLETION], add_generation_prompt=False)
    assert text == f"{SYSTEM}Be brief.{END}{USER}What is 12 plus 34?{END}{ASSISTANT}It is 46.{END}"
    assert render(tokenizer, PROMPT, add_generation_prompt=True).endswith(f"{END}{ASSISTANT}")


message_text = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1).filter(lambda text: "<|" not in text)


@settings(max_examples=200, deadline=None)
@given(st.booleans(), st.lists(message_text, min_size=2, max_size=6).filter(lambda turns: len(turns) % 2 == 0))
def test_prompt_and_completion_together_are_the_rendered_conversation(tokenizer: Any, system: bool, texts: list[str]) -> None:
    turns = [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(texts)]
    conversation = ([SYSTEM_TURN] if system else []) + turns
    prompt, completion = conversation[:-1], conversation[-1:]
    ids = prompt_ids(tokenizer, prompt) + completion_ids(tokenizer, prompt, completion)
    whole = render(tokenizer, conversation, add_generation_prompt=False)
    assert ids == tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == whole
    end = end_of_turn_id(tokenizer)
    assert completion_ids(tokenizer, prompt, completion).count(end) == 1
    assert ids[-1] == end
    assert "".join(text for text, _ in token_pieces(tokenizer, ids)) == whole


def test_no_text_is_unknown_and_every_digit_is_a_token(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "20261121 \U0001f600 漢字 ß \x07 한글 \t\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.unk_token is None
    assert tokenizer.convert_ids_to_tokens(tokenizer("1234")["input_ids"]) == ["1", "2", "3", "4"]


def test_padding_is_not_the_end_of_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.pad_token == PAD
    assert tokenizer.eos_token_id == end_of_turn_id(tokenizer) != tokenizer.pad_token_id


def test_the_same_texts_give_the_same_files(tmp_path: Path) -> None:
    digests = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        train_tokenizer(TEXTS, 400).save_pretrained(folder)
        digests.append({file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in folder.iterdir()})
    assert digests[0] == digests[1]


def test_a_saved_tokenizer_renders_as_before(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert completion_ids(loaded, PROMPT, COMPLETION) == completion_ids(tokenizer, PROMPT, COMPLETION)
    assert loaded.pad_token == PAD


def test_the_generation_mask_of_trl_covers_the_completion_and_its_end(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = tokenizer.apply_chat_template([*PROMPT, *COMPLETION], return_assistant_tokens_mask=True, return_dict=True)
    prompt, completion = encode_turns(tokenizer, [(PROMPT, COMPLETION)])[0]
    assert encoded["assistant_masks"] == [0] * len(prompt) + [1] * len(completion)


@pytest.mark.parametrize(("template", "merges"), [(TINY_TEMPLATE, False), (DEFAULT_TEMPLATE, False), (DEFAULT_TEMPLATE, True)])
def test_every_stage_reads_the_same_tokens(tokenizer: PreTrainedTokenizerFast, template: str, merges: bool) -> None:
    """SFT, the reward model, DPO, KTO and ORPO, as TRL reads them; sampling, PPO and evaluation use `prompt_ids`, rewards `encode_turns`."""
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    if merges:  # a new line at the end of a prompt and one at the start of an answer
        tokenizer = train_tokenizer(["a\n\nb"] * 50 + TEXTS, 400)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=1, num_labels=1, pad_token_id=tokenizer.pad_token_id)
    model = LlamaForCausalLM(config)
    prompt = [SYSTEM_TURN, *PROMPT]
    rejected = [{"role": "assistant", "content": "\n 47, I think."}]
    options: dict[str, Any] = {"output_dir": "unused", "report_to": [], "bf16": False, "use_cpu": True, "max_length": None}
    turn, worse = encode_turns(tokenizer, [(prompt, COMPLETION), (prompt, rejected)])
    assert turn.prompt == worse.prompt == prompt_ids(tokenizer, prompt)
    demonstrations = encode_demonstrations(tokenizer, [{"prompt": prompt, "completion": COMPLETION}])
    sft = SFTTrainer(model, SFTConfig(**options, completion_only_loss=True), train_dataset=Dataset.from_list(demonstrations),
                     processing_class=tokenizer)  # fmt: skip
    row = sft.train_dataset[0]
    assert row["input_ids"] == turn.prompt + turn.completion
    assert row["labels"] == [-100] * len(turn.prompt) + turn.completion
    pair = {"prompt": prompt, "chosen": COMPLETION, "rejected": rejected}
    reward = RewardTrainer(LlamaForSequenceClassification(config), RewardConfig(**options), processing_class=tokenizer,
                           train_dataset=Dataset.from_list(encode_preferences(tokenizer, [pair])))  # fmt: skip
    row = reward.train_dataset[0]
    assert row["chosen_ids"] == turn.prompt + turn.completion  # as plumbline/rewards/model.py asks for a reward
    assert row["rejected_ids"] == turn.prompt + worse.completion
    dpo = takes_ids(DPOTrainer)(model, ref_model=copy.deepcopy(model), args=DPOConfig(**options), processing_class=tokenizer,
                                train_dataset=Dataset.from_list(encode_pairs(tokenizer, [pair])))  # fmt: skip
    row = dpo.train_dataset[0]
    assert (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) == (turn.prompt, turn.completion, worse.completion)
    (row,) = encode_labels(
        tokenizer, [{"prompt": prompt, "completion": rejected, "label": False}], KtoConfig(loss="apo_zero_unpaired")
    )
    assert row == {"prompt_ids": worse.prompt, "completion_ids": worse.completion, "label": False}
    orpo = orpo_row(*encode_pairs(tokenizer, [pair])[0].values())
    assert orpo["rejected_input_ids"] == worse.prompt + worse.completion
    assert orpo["rejected_labels"] == [-100] * len(worse.prompt) + worse.completion


def test_a_vocabulary_too_small_for_all_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match=f"vocabulary_size: expected at least {SMALLEST_VOCABULARY}"):
        train_tokenizer(TEXTS, SMALLEST_VOCABULARY - 1)


def test_an_unknown_role_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ChatTemplateError, match="expected role system, user or assistant, found tool"):
        render(tokenizer, [{"role": "tool", "content": "4"}], add_generation_prompt=False)


def bare(texts: list[str] = TEXTS) -> PreTrainedTokenizerFast:
    """A tokenizer like GPT-2's: without a template or a padding token."""
    tokenizer = train_tokenizer(texts, 400)
    tokenizer.chat_template = None
    tokenizer.pad_token = None
    return tokenizer


def test_a_model_without_template_gets_the_documented_default() -> None:
    ready = make_ready(bare())
    assert ready.tokenizer.chat_template == DEFAULT_TEMPLATE
    assert render(ready.tokenizer, PROMPT, add_generation_prompt=True) == f"<|user|>\nWhat is 12 plus 34?{END}\n<|assistant|>\n"
    assert any("the default (Zephyr's) is set" in note for note in ready.notes)
    turn = encode_turns(ready.tokenizer, [(PROMPT, COMPLETION)])[0]
    assert ready.tokenizer.decode(turn.completion) == f"It is 46.{END}"  # without the newline that follows in the template


def test_a_completion_that_begins_with_a_newline_follows_the_finished_prompt() -> None:
    tokenizer = make_ready(bare(["a\n\nb"] * 50)).tokenizer  # here two newlines merge into one token
    turn = encode_turns(tokenizer, [(PROMPT, [{"role": "assistant", "content": "\nyes"}])])[0]
    assert turn.prompt == prompt_ids(tokenizer, PROMPT)
    assert tokenizer.decode(turn.completion) == f"\nyes{END}"


def test_padding_that_is_the_end_of_turn_is_replaced_and_noted() -> None:
    tokenizer = train_tokenizer(TEXTS, 400)
    tokenizer.pad_token = END
    ready = make_ready(tokenizer)
    assert ready.tokenizer.pad_token == PAD
    (note,) = ready.notes
    assert note.startswith(f"padding token: '{PAD}'")


def test_a_model_without_any_candidate_gets_a_new_padding_token() -> None:
    ready = make_ready(byte_level(("</s>",), eos_token="</s>"))
    assert ready.tokenizer.pad_token == PAD
    assert "the embeddings grow by one row" in ready.notes[-1]


def test_the_end_of_turn_as_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="pad_token: expected a token that is not the end-of-turn token"):
        make_ready(train_tokenizer(TEXTS, 400), pad_token=END)


def test_a_tokenizer_without_end_of_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="eos_token: expected an end-of-sequence token"):
        make_ready(byte_level(("</s>",)))


def test_a_template_without_end_of_turn_is_refused() -> None:
    template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    with pytest.raises(ChatTemplateError, match="to end an assistant turn with a special token"):
        make_ready(train_tokenizer(TEXTS, 400), chat_template=template)


def test_a_template_that_renders_the_prompt_alone_differently_is_refused() -> None:
    template = (
        "{% if add_generation_prompt %}Answer this: {% endif %}"
        "{% for message in messages %}{{ message['content'] + eos_token }}{% endfor %}"
    )
    tokenizer = train_tokenizer(TEXTS, 400)
    with pytest.raises(ChatTemplateError, match="renders the prompt alone differently"):
        make_ready(tokenizer, chat_template=template)
    with pytest.raises(ChatTemplateError, match="renders the prompt alone differently"):
        completion_ids(tokenizer, PROMPT, COMPLETION)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path: expected a tokenizer in .*, found no tokenizer\.json"):
        load_tokenizer(str(tmp_path))


def test_the_end_of_turn_is_the_templates_and_not_the_eos_token() -> None:
    tokenizer = train_tokenizer(TEXTS, 400)
    template = (
        "{% for m in messages %}<|user|>{{ m['content'] }}<|system|>{% endfor %}{% if add_generation_prompt %}<|user|>{% endif %}"
    )
    ready = make_ready(tokenizer, chat_template=template)
    assert ready.tokenizer.convert_ids_to_tokens(end_of_turn_id(ready.tokenizer)) == SYSTEM


def test_a_template_that_writes_the_date_writes_the_same_every_day() -> None:
    template = "{{ strftime_now('%d %b %Y') }}: " + TINY_TEMPLATE
    ready = make_ready(bare(), chat_template=template)
    rendered = render(ready.tokenizer, [{"role": "user", "content": "a"}], add_generation_prompt=True)
    assert rendered.startswith("26 Jul 2024:<|user|>")
    assert any("fixed" in note for note in ready.notes)
