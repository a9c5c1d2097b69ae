"""Hold the paper's claims against a comparison made with `recipes/compare.py`, and write its tables, figures and verdicts.

    python benchmarks/paper_claims.py --collect outputs/cifar10_small    # take over finished runs into the archive, then write
    python benchmarks/paper_claims.py                                    # write again from the archive alone

The archive (by default benchmarks/results/cifar10_small) holds every run as `run.json` (options, commit, versions, seconds),
`report.json` (the outcome of every image under every attack), `trainer_state.json` (the log) and the student itself, if it is small
(`config.json`, `model.safetensors`), and `comparison.json` with the command. `NOTES.md` in it is put at the head of the page, and
reports of `bmtard evaluate` in `strong/LABEL/report.json` are tabled as stronger attacks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for `claims`, also when a test imports this file

from claims.archive import keep, load
from claims.document import write_page

ARCHIVE = Path(__file__).parent / "results" / "cifar10_small"
NOTES = "NOTES.md"


def main(argv: list[str] | None = None) -> Path:
    """Bring the archive up to date, if asked to, and write its page; return the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", type=Path, metavar="OUTPUT_DIR", help="--output_dir of compare.py")
    parser.add_argument("--archive", type=Path, default=ARCHIVE, help="directory in the repository")
    options = parser.parse_args(argv)
    if options.collect is not None:
        print("Finished runs:", ", ".join(keep(options.collect, options.archive)))
    notes = options.archive / NOTES
    page = write_page(
        load(options.archive),
        notes.read_text() if notes.is_file() else f"# {options.archive.name}",
        f"python benchmarks/paper_claims.py --archive {_shown(options.archive)}",
    )
    print(f"Written: {page}")
    return page


def _shown(path: Path) -> str:
    root = Path(__file__).parents[1]
    resolved = path.resolve()
    return resolved.relative_to(root).as_posix() if resolved.is_relative_to(root) else path.name


if __name__ == "__main__":
    main()
