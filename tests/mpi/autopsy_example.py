"""The stalled job whose autopsy docs/diagnosis.md shows. As a program it runs the job and writes its autopsy there:

    python tests/mpi/autopsy_example.py

A test runs the same job and compares the shapes: the page shows what the program prints, whatever the numbers are.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from jobs import Job, clean_environment

PAGE = Path(__file__).resolve().parents[2] / "docs" / "diagnosis.md"
BEGIN = "<!-- autopsy: written by tests/mpi/autopsy_example.py -->\n```text\n"
END = "```\n<!-- end of autopsy -->\n"
HEADING = "ringred autopsy"
SHOWN_DIRECTORY = "/home/you"

TRAIN = """\
import time

import numpy as np

import ringred as rr


def read_next_batch():
    time.sleep(4)  # a file server that does not answer


def train(step):
    if rr.rank() == 1 and step == 2:
        read_next_batch()
    gradient = np.ones(1000, np.float32)
    rr.allreduce_async_(gradient, name="layer1.weight").wait()


rr.init()
for step in range(3):
    train(step)
"""


def run(stall_seconds: float = 1.0) -> tuple[int, str]:
    """Run the job on two ranks; its exit code, and what it printed, as if it lay in SHOWN_DIRECTORY."""
    with tempfile.TemporaryDirectory(prefix="ringred-example-") as directory, Job() as job:
        script = Path(directory, "train.py")
        script.write_text(TRAIN)
        words = [sys.executable, "-P", "-m", "ringred.cli", "run", "-np", "2", "--", str(script)]
        job.start(words, clean_environment(RINGRED_STALL_SECONDS=str(stall_seconds)))
        (ended,) = job.wait()
        return ended.status, ended.text.replace(directory, SHOWN_DIRECTORY)


def autopsy_in(text: str) -> str:
    """The first autopsy in what a job printed; empty where there is none."""
    begin = text.find(HEADING)
    return "" if begin < 0 else text[begin:].rstrip() + "\n"


def shown(page: str) -> str:
    """The autopsy on the page."""
    return page[page.index(BEGIN) + len(BEGIN) : page.index(END)]


def shape(autopsy: str) -> list[str]:
    """An autopsy's lines without what differs from run to run: numbers, and which letter the scheduler has."""
    without_numbers = re.sub(r"\d+(\.\d+)?", "0", autopsy)
    return [line.rstrip() for line in without_numbers.splitlines()]


def main() -> int:
    """Write a new autopsy into the page."""
    status, text = run()
    autopsy = autopsy_in(text)
    if status != 0 or not autopsy:
        print(f"the job ended with {status} and printed:\n{text}", file=sys.stderr)
        return 1
    page = PAGE.read_text()
    begin, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    PAGE.write_text(page[:begin] + autopsy + page[end:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
