"""Studies: one question, a recipe whose values vary, several seeds, one figure and one sentence with an interval."""
