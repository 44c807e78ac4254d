"""Where public data and recorded cases lie, for the tests that use them where they are present."""

import os
from pathlib import Path

FOLDER = Path(os.environ.get("PLUMBLINE_SHARED") or Path(__file__).parents[2] / "shared")
"""The folder of both, which not every machine has."""

SHARED = FOLDER / "data"
CASES = FOLDER / "cases"
