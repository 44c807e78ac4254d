"""Set phrases by language: courtesies, rudeness, filler, refusals and admissions of ignorance. `words/phrases.yaml` explains each."""

from plumbline.world.families.lexicon import load_words

Phrases = dict[str, list[str]]  # by language
PhrasesByHarm = dict[str, dict[str, list[str]]]  # by language and kind of harm

_PHRASES = load_words("phrases")

OPENINGS: Phrases = _PHRASES["openings"]
APOLOGIES: Phrases = _PHRASES["apologies"]
CLOSINGS: Phrases = _PHRASES["closings"]
HELPFUL_CLOSINGS: Phrases = _PHRASES["helpful_closings"]
RUDE: Phrases = _PHRASES["rude"]
FILLER: Phrases = _PHRASES["filler"]

IGNORANCE: Phrases = _PHRASES["ignorance"]
IGNORANCE_MARKERS: Phrases = _PHRASES["ignorance_markers"]

BARE_REFUSALS: Phrases = _PHRASES["bare_refusals"]
REFUSAL_MARKERS: Phrases = _PHRASES["refusal_markers"]
FULL_REFUSALS: Phrases = _PHRASES["full_refusals"]
REASONS: PhrasesByHarm = _PHRASES["reasons"]
ALTERNATIVES: PhrasesByHarm = _PHRASES["alternatives"]
