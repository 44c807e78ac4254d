"""Every file of public data through `prepare`: what came in, what was kept, what was dropped why, as a Markdown table.

`python tests/benchmarks/public_samples.py ../shared/data`: by conf/data/public_samples.yaml, nothing cut off by a context. Files
that no source of the conf names are listed at the end.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[2]))


def main(samples: Path) -> None:
    from stages.datasets.report import source_rows
    from tests.preparing import ROLES, data_conf, prepare

    data = data_conf("public_samples")
    with TemporaryDirectory() as folder:
        (Path(folder) / "in").symlink_to(samples.resolve())
        sources = {role: getattr(data, role).sources for role in ROLES}
        pools = prepare(Path(folder), sources, data.policy, validation=0.05, test=0.05).pools
    places = {
        (role, source, reason): f" ({', '.join(str(drop.row) for drop in drops[:3])}{', …' if len(drops) > 3 else ''})"
        for role, pool in pools.items()
        for (source, reason), drops in pool.tally.examples.items()
    }
    files = {source.name: source.files for role in ROLES for source in sources[role]}
    print("| file | source | as | format | rows in | kept | dropped, with the first rows |\n|---|---|---|---|---|---|---|")
    for row in source_rows(pools):
        why = ", ".join(
            f"{part}{places[(row['role'], row['source'], part.split(' ')[0])]}" for part in row["why"].split(", ") if part
        )
        name = ", ".join(files[row["source"]])
        print(f"| {name} | {row['source']} | {row['role']} | {row['format']} | {row['rows_in']} | {row['kept']} | {why or '0'} |")
    named = {name for names in files.values() for name in names}
    for path in sorted(samples.rglob("*")):
        if path.is_file() and path.relative_to(samples).as_posix() not in named:
            print(f"not named by the conf: {path.relative_to(samples).as_posix()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
