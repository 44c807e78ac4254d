"""Every public sample through `prepare`: rows in, rows kept, and rows dropped by reason, as a Markdown table.

`python tests/benchmarks/public_samples.py ../shared/data` follows conf/data/public_samples.yaml, with no row too long for a context. Files
that no source of the conf names are listed at the end.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[2]))


def main(samples: Path) -> None:
    from plumbline.data.overview import source_rows
    from tests.preparing import data_conf, prepare, sources_of

    data = data_conf("public_samples")
    sources = sources_of(data)
    with TemporaryDirectory() as folder:
        (Path(folder) / "in").symlink_to(samples.resolve())
        pools = prepare(Path(folder), sources, data.policy, validation=0.05, test=0.05).pools
    first_rows = {
        (role, source, reason): f" ({', '.join(str(drop.row) for drop in drops[:3])}{', …' if len(drops) > 3 else ''})"
        for role, pool in pools.items()
        for (source, reason), drops in pool.tally.examples.items()
    }
    files = {source.name: source.files for role in sources.values() for source in role}
    print("| file | source | role | format | rows in | kept | dropped, with the first rows |\n|---|---|---|---|---|---|---|")
    for row in source_rows(pools):
        reasons = ", ".join(
            f"{part}{first_rows[(row['role'], row['source'], part.split(' ')[0])]}" for part in row["reasons"].split(", ") if part
        )
        cells = [
            ", ".join(files[row["source"]]),
            row["source"],
            row["role"],
            row["format"],
            row["rows_in"],
            row["kept"],
            reasons or "0",
        ]
        print(f"| {' | '.join(map(str, cells))} |")
    named = {name for names in files.values() for name in names}
    for path in sorted(samples.rglob("*")):
        if path.is_file() and path.relative_to(samples).as_posix() not in named:
            print(f"not named by the conf: {path.relative_to(samples).as_posix()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
