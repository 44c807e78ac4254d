"""The same writing in another encoding is the same text: decomposed and half-width Hangul, decomposed accents, full-width letters and digits."""

import unicodedata

import pytest

from plumbline.data.personal_data import may_contain_any, scan
from plumbline.data.scripts import language
from plumbline.data.texts import identity, prompt_text
from plumbline.judging.templates import conversation_language
from plumbline.letters import composed, folded
from plumbline.rewards.rules import Rule, value
from plumbline.rows import assistant, language_of

KOREAN = "값을 닭이 먹었다 괜찮아요 흙 뷁"
HALF_WIDTH = "ﾡￂﾴﾷￚﾩ ﾧￂﾪﾷￜ ﾱￆﾡﾷￆﾶﾧￂ ﾡￎﾤﾺￂﾦﾷￂﾷￒ ﾾￚﾪ ﾲￕﾪ"


def decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


FORMS = {"composed": KOREAN, "decomposed": decomposed(KOREAN), "half-width": HALF_WIDTH}


@pytest.mark.parametrize("form", FORMS)
def test_korean_is_korean_and_the_same_text_however_it_is_encoded(form: str) -> None:
    text = FORMS[form]
    assert composed(text) == folded(text) == KOREAN
    assert language_of(text) == conversation_language([{"role": "user", "content": text}]) == language(text) == "ko"
    prompt = [{"role": "user", "content": text}]
    assert identity({"prompt": prompt}) == identity({"prompt": [{"role": "user", "content": KOREAN}]})
    assert prompt_text({"prompt": prompt}) == KOREAN


@pytest.mark.parametrize("letter", ["ᄀ", "ᅡ", "ᆨ", "ꥠ", "ힰ", "ퟋ", "ㄱ", "ㅏ", "ﾡ", "ￜ", "가", "힣"])
def test_every_block_of_hangul_is_korean(letter: str) -> None:
    assert language_of(f"abc {letter}") == "ko"
    assert language_of("ABC ＡＢＣ 漢字 カナ ｶﾅ é") == "en"


@pytest.mark.parametrize("form", FORMS)
def test_rules_read_korean_however_it_is_encoded(form: str) -> None:
    prompt = [{"role": "user", "content": FORMS[form]}]
    for phrase in ("닭", decomposed("닭")):
        assert value(Rule(kind="forbidden", phrases={"ko": [phrase]}), prompt, FORMS[form]) == 0.0
        assert value(Rule(kind="pattern", expression=f"{phrase}이"), prompt, FORMS[form]) == 1.0
    assert value(Rule(kind="pattern", expression=decomposed("^[가-힣 ]+$")), prompt, FORMS[form]) == 1.0
    assert value(Rule(kind="courtesy"), prompt, decomposed("감사합니다")) == 1.0
    assert value(Rule(kind="length", unit="characters", most=len(KOREAN)), prompt, FORMS[form]) == 1.0


def test_rules_read_accents_and_full_width_letters_however_they_are_encoded() -> None:
    prompt = [{"role": "user", "content": "Hello"}]
    forbidden = Rule(kind="forbidden", phrases={"en": ["café"]})
    for text in ("A café!", decomposed("A Café!"), "Ａ ｃａｆé", "café에서"):
        assert value(forbidden, prompt, text) == 0.0, text
    for text in ("A cafe", "cafés"):
        assert value(forbidden, prompt, text) == 1.0, text
    assert value(Rule(kind="forbidden", phrases={"en": ["cafe"]}), prompt, decomposed("A café")) == 1.0
    assert value(Rule(kind="forbidden", phrases={"en": [decomposed("café")]}), prompt, "A café") == 0.0
    assert value(Rule(kind="pattern", expression="！"), prompt, "Hi！") == 1.0  # a pattern sees the width that is written


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("전화 010-1234-5678로", "전화 [PHONE]로"),
        ("전화 ０１０－１２３４－５６７８", "전화 [PHONE]"),
        ("전화 010–1234–5678, 010‑1234‑5678", "전화 [PHONE], [PHONE]"),
        ("전화 010\u00a01234\u00a05678", "전화 [PHONE]"),
        ("ａ＠ｂ．ｃｏｍ 그리고 a@b.com", "[EMAIL] 그리고 [EMAIL]"),
        ("주민 ９００１０１－１２３４５６７", "주민 [RESIDENT NUMBER]"),
    ],
)
def test_personal_data_are_found_and_the_rest_of_the_text_stays_as_it_is(text: str, masked: str) -> None:
    for form in (str, decomposed):
        assert may_contain_any(form(text))
        assert scan(form(text)).masked == form(masked)


def test_ordinary_texts_are_untouched() -> None:
    text = "Plain ASCII, 한국어, 漢字, café, ㅋㅋㅋ, ½ x² ①"
    assert composed(text) == folded(text) == text
    assert assistant(text)[0]["content"] == text
