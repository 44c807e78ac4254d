"""The closed world, a small bilingual world of verifiable questions. Import it by three doors: `generate`, `verify`, `annotate`."""
