"""The closed world: a small bilingual world of questions in which every answer can be verified."""
