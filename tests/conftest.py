"""Under mpirun a test has one outcome on all ranks: the worst one, with the name of the rank where it happened.

1. Before the first test the ranks compare what they collected: ranks that run different tests would hang.
2. After each phase (setup, call, teardown) every rank tells the others its outcome. If all agree, that was one small
   message. If not, details follow, and the phase fails on every rank.
3. Rank 0 prints; the others write reports/rank{r}.txt. Every rank writes there which test it starts, and a failure
   before it tells the others.
4. A rank that failed does not wait for long: the others may be in a collective that it has left. It ends the job.

A rank that waits for ever is ended by pytest-timeout (its thread works while C code blocks); mpirun ends the others.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from _pytest.config import create_terminal_writer

SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
JOURNAL_MARK = "-> "
OUTCOMES = ("passed", "skipped", "failed")
OTHERS_SECONDS = 20.0
POLL_SECONDS = 0.0005  # most MPIs spin while they wait: that would slow down the rank that is waited for


def launched_size() -> int:
    """The number of ranks that the launcher says it has started; 1 without a launcher."""
    return max((int(os.environ[name]) for name in SIZE_VARIABLES if os.environ.get(name, "").isdigit()), default=1)


class Agreement:
    """The pytest plugin that makes the ranks of one mpirun agree. It talks on a communicator of its own."""

    def __init__(self, root: Path) -> None:
        from mpi4py import MPI

        self.world = MPI.COMM_WORLD.Dup()
        reports = root / "reports"
        reports.mkdir(exist_ok=True)
        # Line buffered: the file tells where the rank was when it was killed.
        self.journal = (reports / f"rank{self.world.rank}.txt").open("w", buffering=1, encoding="utf-8")
        if self.world.size != launched_size():
            pytest.exit(f"mpirun started {launched_size()} ranks, but MPI sees {self.world.size}: two MPIs", 3)

    def compare(self, text: str, code: int) -> tuple[bool, list[int]]:
        """Exchange a fingerprint of ``text`` and ``code``; return whether the texts agree, and all codes by rank."""
        import numpy as np

        mine = np.array([zlib.crc32(text.encode()), code], dtype=np.int64)
        all_of_them = np.empty((self.world.size, 2), dtype=np.int64)
        request = self.world.Iallgather(mine, all_of_them)
        deadline = time.monotonic() + OTHERS_SECONDS
        while not request.Test():
            time.sleep(POLL_SECONDS)
            if OUTCOMES[code] == "failed" and time.monotonic() > deadline:
                self.give_up(text)
        return bool((all_of_them[:, 0] == mine[0]).all()), all_of_them[:, 1].tolist()

    def give_up(self, text: str) -> None:
        """This rank failed and the others do not come: say what happened where, and end the job."""
        journal = Path(self.journal.name).read_text(encoding="utf-8")
        message = f"rank {self.world.rank} failed in {text}, the others did not end it within {OTHERS_SECONDS:.0f} s:"
        os.write(2, f"\n{message}\n{journal[journal.rfind(JOURNAL_MARK) :]}\n".encode())
        self.world.Abort(1)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        reporter: Any = session.config.pluginmanager.getplugin("terminalreporter")
        if self.world.rank != 0 and reporter is not None:
            reporter._tw = create_terminal_writer(session.config, self.journal)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        print(f"\n{JOURNAL_MARK}{nodeid}", file=self.journal)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        names = "\n".join(item.nodeid for item in session.items)
        same, failures = self.compare(names, OUTCOMES.index("failed" if session.testsfailed else "passed"))
        if not same or any(failures):
            problem = "failed to collect" if any(failures) else "collected different tests"
            by_rank = [OUTCOMES[code] for code in failures]
            pytest.exit(f"the ranks {problem}: {by_rank} by rank, {len(session.items)} tests here", 3)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.failed:
            print(f"{report.when} failed:\n{report.longreprtext}", file=self.journal)
        same, codes = self.compare(f"{item.nodeid} {report.when}", OUTCOMES.index(report.outcome))
        if not same:
            pytest.exit(f"the ranks are at different tests; rank {self.world.rank} is at {item.nodeid}", 3)
        if len(set(codes)) > 1 or OUTCOMES[max(codes)] == "failed":
            self.fail_everywhere(report, codes)
        return report

    def fail_everywhere(self, report: pytest.TestReport, codes: list[int]) -> None:
        """Turn this rank's report into a failure that says what happened on which rank."""
        texts = self.world.allgather(report.longreprtext)
        told = []
        for rank in sorted(range(len(codes)), key=lambda rank: -codes[rank]):
            told.append(f"rank {rank} {OUTCOMES[codes[rank]]}" + (f":\n{texts[rank]}" if texts[rank] else ""))
        report.outcome = "failed"
        report.longrepr = "\n".join(told)
        if hasattr(report, "wasxfail"):
            del report.wasxfail


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if launched_size() > 1:
        agreement = Agreement(Path(config.rootpath))
        config.pluginmanager.register(agreement, "ringred-agreement")
        if agreement.world.rank != 0:
            config.option.xmlpath = None  # one results file is enough, and two writers would spoil it
    elif os.environ.get("RANK", "0") != "0":  # of torchrun
        config.option.xmlpath = None
