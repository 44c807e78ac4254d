"""A table in shards as JSON Lines, for people and for programs that read text.

python -m plumbline.tools.as_text artifacts/sample/round1 --prompts 20 > round1.jsonl
"""

import argparse
import json
import sys
from itertools import islice
from pathlib import Path

from plumbline.pipeline.shard_files import read_groups


def main() -> None:
    """Prints the rows of a table, one JSON object a line."""
    parser = argparse.ArgumentParser(description="Prints the rows of a table in shards as JSON Lines.")
    parser.add_argument("table", type=Path, help="artifacts/sample/<entry>, or artifacts/answer/<policy>/completions")
    parser.add_argument("--prompts", type=int, default=0, help="the number of prompts whose rows are printed (default: all)")
    options = parser.parse_args()
    try:
        for group in islice(read_groups(options.table), options.prompts or None):
            for row in group:
                print(json.dumps(row, ensure_ascii=False))
    except ValueError as error:
        sys.exit(str(error))
    except BrokenPipeError:  # `head` has seen enough
        sys.stderr.close()


if __name__ == "__main__":
    main()
