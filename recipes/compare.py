"""Train several methods under one budget, measure them with the same attacks, and write one table.

    python recipes/compare.py --config recipes/configs/compare_small.yaml --methods bmtard sat trades --seeds 0 1 \
        --clean_teacher outputs/clean --robust_teacher outputs/robust --output_dir outputs/compare

A row is METHOD, METHOD:option=value,option=value or LABEL=METHOD:option=value; every option of BMTARDConfig, given once, is
the budget of all rows. The same command goes on after an interruption, adds rows, and leaves finished runs as they are. One
process per GPU, or one on a CPU (--processes). Tables are in output_dir/comparison.md and .json, models in output_dir/runs.
"""

from __future__ import annotations

import sys

import transformers

from bmtard_hooks.compare import make_plan, run_comparison
from bmtard_hooks.compare.tables import accuracy_table, sentences, write_comparison


def main(argv: list[str] | None = None) -> int:
    """Bring every run to its end, rewrite the table after each, and print it.

    Returns:
        0 if every run of the table (or of --only) is finished, 1 if not, 2 for a mistake in the command line or the input, 130 if it was stopped.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        plan = make_plan(sys.argv[1:] if argv is None else argv, __doc__)
        run_comparison(plan, say, after_each=lambda: write_comparison(plan))
    except (ValueError, OSError) as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("compare.py: stopped; the same command goes on", file=sys.stderr)
        return 130
    results = write_comparison(plan)
    print("", accuracy_table(results.content).markdown(0), *sentences(results.content), sep="\n\n")
    print(f"\nTable: {plan.directory / 'comparison.md'}")
    return 1 if results.unfinished else 0


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
