"""``ringred draw ring -n 4``: the schedule of an algorithm, step by step, with what it costs."""

from __future__ import annotations

import argparse

from ringred import _core


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("algorithm", nargs="?", choices=[row[0] for row in _core.algorithm_table()], help="which one")
    parser.add_argument("-n", "--ranks", type=int, default=4, help="number of ranks (default 4)")
    parser.add_argument("--chunks", type=int, default=4, help="depth of the pipeline, for double_tree (default 4)")


def run(args: argparse.Namespace) -> int:
    """Print one schedule, or the table of algorithms if none was named."""
    if args.algorithm is None:
        for name, summary, rounds, share in _core.algorithm_table():
            print(f"{name:20}  {summary}\n{'':20}  rounds {rounds}; bytes {share}")
        return 0
    print(_core.draw(args.algorithm, args.ranks, args.chunks))
    return 0
