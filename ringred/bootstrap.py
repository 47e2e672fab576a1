"""How ranks meet: through MPI, through torchrun's store, or not at all. A bootstrap exchanges bytes, nothing else."""

from __future__ import annotations

import array
import contextlib
import datetime
import functools
import itertools
import operator
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from ringred import _core
from ringred.environment import read as read_environment
from ringred.errors import PeerLostError, SystemError, TimeoutError, UsageError

Result = TypeVar("Result")

MPI_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS")
"""What Open MPI's and hydra's launchers (MPICH, Intel MPI) set, and srun --mpi=pmi2 the second of them. The last counts
one node's ranks only."""

STEP_VARIABLES = ("SLURM_STEP_ID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
"""What srun sets for each of its tasks. A batch script and a shell of salloc have SLURM_NTASKS too, and no step."""

NAMESPACE_VARIABLE = "PMIX_NAMESPACE"
"""What every launcher sets that speaks PMIx, such as srun --mpi=pmix. It does not tell how many ranks there are."""

STORE_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets, all of them."""

TORCHRUN_VARIABLE = "TORCHELASTIC_RUN_ID"
"""What torchrun alone sets. It may itself be a task of srun's or a rank of mpirun's, and its ranks are neither's."""


class Bootstrap(Protocol):
    """The ranks of a job before they share memory."""

    name: str
    rank: int
    size: int

    def allgather(self, value: Any) -> list[Any]:
        """Every rank's value (anything that pickles), in rank order, on every rank."""


class SingleBootstrap:
    """One process alone."""

    name = "single"
    rank = 0
    size = 1

    def allgather(self, value: Any) -> list[Any]:
        return [value]


class MpiBootstrap:
    """Processes that mpirun or mpiexec started, over a communicator of our own."""

    name = "mpi"

    def __init__(self, environment: Mapping[str, str], timeout_seconds: float, comm: Any = None) -> None:
        from mpi4py import MPI

        check_launcher(environment, MPI.COMM_WORLD.Get_size(), MPI.Get_library_version())
        parent = MPI.COMM_WORLD if comm is None else _communicator_of(MPI, comm)
        self.rank: int = parent.Get_rank()
        self.size: int = parent.Get_size()
        self._mpi: Any = MPI
        self._timeout_seconds = timeout_seconds
        self._stall_seconds = _seconds(environment, "RINGRED_STALL_SECONDS", 30.0)
        with self._named_losses():
            communicator, request = parent.Idup()
            self._finish(request)
        self.communicator: Any = communicator

    def check_thread_level(self) -> None:
        """Raise UsageError where MPI was initialised for calls by its main thread only."""
        level = self._mpi.Query_thread()
        if level < self._mpi.THREAD_SERIALIZED:
            names = {self._mpi.THREAD_SINGLE: "MPI_THREAD_SINGLE", self._mpi.THREAD_FUNNELED: "MPI_THREAD_FUNNELED"}
            raise UsageError(
                "Between nodes ringred calls MPI from the threads that call ringred and from one of its own, so MPI "
                f"must be initialised with MPI_THREAD_MULTIPLE: it is with {names.get(level, level)}. Remove what "
                "lowers it (mpi4py.rc.thread_level, MPI4PY_RC_THREAD_LEVEL, or another library that initialises MPI "
                "first)."
            )

    def network(self) -> tuple[Any, str]:
        """A link between nodes through the MPI library that mpi4py has loaded, on a communicator of its own, and what
        is to be known of it, or "". Collective, after all ranks have checked their thread level.
        """
        level = self._mpi.Query_thread()
        with self._named_losses():
            communicator, request = self.communicator.Idup()
            self._finish(request)
        communicator.Set_errhandler(self._mpi.ERRORS_RETURN)
        multiple = level >= self._mpi.THREAD_MULTIPLE
        network = _core.mpi_network(
            library=self._mpi.__file__,  # what it is linked with is found through it
            handle_bytes=self._mpi._sizeof(communicator),
            communicator=self._mpi._handleof(communicator) % 2**64,
            byte_type=self._mpi._handleof(self._mpi.BYTE) % 2**64,
            ranks=list(range(self.size)),
            any_thread=multiple,
        )
        self._link = communicator  # lives as long as this
        return network, "" if multiple else (
            "MPI allows one thread at a time (MPI_THREAD_SERIALIZED), so data moves between nodes only while this "
            "program is inside a call of ringred's: nothing is hidden behind the backward pass."
        )

    def allgather(self, value: Any) -> list[Any]:
        data = bytearray(pickle.dumps(value))
        lengths = array.array("q", [0] * self.size)
        with self._named_losses():
            self._finish(self.communicator.Iallgather([array.array("q", [len(data)]), self._mpi.INT64_T], lengths))
            whole = bytearray(sum(lengths))
            self._finish(self.communicator.Iallgatherv(data, [whole, list(lengths)]))
        ends = list(itertools.accumulate(lengths))
        return [pickle.loads(whole[end - length : end]) for end, length in zip(ends, lengths, strict=True)]

    def _finish(self, request: Any) -> None:
        """Wait with a deadline and a report, which MPI's own waiting has not."""
        start, reported = time.monotonic(), False
        while not request.Test():
            waited = time.monotonic() - start
            if waited > self._timeout_seconds:
                raise TimeoutError(
                    f"All ranks must come to init(): one of the {self.size} did not within {self._timeout_seconds:g} s "
                    "(RINGRED_TIMEOUT_SECONDS). Look at what the other ranks do (py-spy dump)."
                )
            if 0 < self._stall_seconds < waited and not reported:
                reported = True
                text = f"rank {self.rank} waits in init() for other ranks, for {self._stall_seconds:g} s so far."
                print(f"ringred: {text}", file=sys.stderr, flush=True)
            time.sleep(0.0005)

    @contextlib.contextmanager
    def _named_losses(self) -> Iterator[None]:
        try:
            yield
        except self._mpi.Exception as error:
            raise PeerLostError(
                f"All ranks must come to init(): a rank did not, or MPI has lost it: {error}. Restart the job."
            ) from error


def _communicator_of(mpi: Any, comm: Any) -> Any:
    """The communicator that init() was given: one of mpi4py's, or ranks of MPI.COMM_WORLD."""
    if isinstance(comm, mpi.Comm):
        if comm == mpi.COMM_NULL:
            raise UsageError("Only the ranks of a communicator call init() with it: this one has COMM_NULL.")
        return comm
    try:
        ranks = sorted(operator.index(rank) for rank in comm)  # in one order on all ranks, as Create_group needs
    except TypeError:
        raise UsageError(f"comm must be an mpi4py communicator, a list of ranks or None: it is {comm!r}.") from None
    size, own = mpi.COMM_WORLD.Get_size(), mpi.COMM_WORLD.Get_rank()
    if len(set(ranks)) < len(ranks) or own not in ranks or not all(0 <= rank < size for rank in ranks):
        raise UsageError(
            f"comm must list distinct ranks of MPI.COMM_WORLD, 0 to {size - 1}, and only these call init(): it is "
            f"{ranks}, and this is rank {own}."
        )
    return mpi.COMM_WORLD.Create_group(mpi.COMM_WORLD.Get_group().Incl(ranks))


class StoreBootstrap:
    """Processes that torchrun started, or anything that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT."""

    name = "store"

    def __init__(self, environment: Mapping[str, str], generation: int, timeout_seconds: float) -> None:
        from torch.distributed.distributed_c10d import PrefixStore

        with self._named_losses():
            store, self.rank, self.size = _meet(*(environment[name] for name in STORE_VARIABLES), timeout_seconds)
        self._store: Any = PrefixStore(f"ringred/{generation}", store)
        self._round = 0

    def allgather(self, value: Any) -> list[Any]:
        self._round += 1
        keys = [f"{self._round}/{rank}" for rank in range(self.size)]
        with self._named_losses():
            self._store.set(keys[self.rank], pickle.dumps(value))
            self._store.wait(keys)
            return [pickle.loads(self._store.get(key)) for key in keys]

    @contextlib.contextmanager
    def _named_losses(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # the base of what torch raises for networks, stores and deadlines
            reason = str(error).partition("\n")[0]
            raise PeerLostError(
                f"All ranks must come to init(): a rank did not, or the process with the store ended: {reason}"
            ) from error


@functools.cache
def _meet(rank: str, size: str, address: str, port: str, timeout_seconds: float) -> tuple[Any, int, int]:
    """torch's store of this job. Kept as long as the process lives: without torchrun, rank 0 serves it to the others,
    which may need it a moment longer than rank 0 does."""
    from torch.distributed.rendezvous import rendezvous

    timeout = datetime.timedelta(seconds=timeout_seconds)
    store, number, count = next(rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    return store, number, count


def agree(meeting: Bootstrap, what: str, action: Callable[[], Result]) -> Result:
    """Do something on every rank; if it fails on one, raise on all, so that nobody waits for a rank that gave up."""
    failure: Exception | None = None
    try:
        try:
            result = action()
        except Exception as error:
            failure = error
        failures: list[str | None] = meeting.allgather(None if failure is None else str(failure))
        if failure is not None:
            raise failure
    finally:
        failure = None  # an error holds this frame by its traceback, and this frame what the error holds
    for peer, text in enumerate(failures):
        if text is not None:
            raise SystemError(f"rank {peer} could not {what}, so no rank can start: {text}")
    return result


def _seconds(environment: Mapping[str, str], name: str, fallback: float) -> float:
    """A setting in seconds; a wrong one is reported by the core, when it reads all settings."""
    try:
        return float(environment.get(name, fallback))
    except ValueError:
        return fallback


def launched_size(environment: Mapping[str, str]) -> int | None:
    """The number of ranks that an MPI launcher's variables tell, or None without a launcher."""
    for name in MPI_SIZE_VARIABLES:
        if environment.get(name, "").isdigit():
            return int(environment[name])
    return _step_size(environment)


def _step_size(environment: Mapping[str, str]) -> int | None:
    """The number of tasks that srun started with this one, or None for one that is alone or not srun's."""
    if not all(environment.get(name, "").isdigit() for name in STEP_VARIABLES):
        return None
    tasks = int(environment["SLURM_STEP_NUM_TASKS"])
    return tasks if tasks > 1 else None


def _speaks_pmi(environment: Mapping[str, str]) -> bool:
    """Whether a launcher offers this process what MPI libraries ask for their rank and size."""
    if any(environment.get(name, "").isdigit() for name in MPI_SIZE_VARIABLES):
        return True
    alone = environment.get("SLURM_STEP_NUM_TASKS") == "1"  # a single task of srun's may do without MPI
    return bool(environment.get(NAMESPACE_VARIABLE)) and not alone


def check_launcher(environment: Mapping[str, str], size: int, library: str) -> None:
    """Raise where the launcher started more ranks than the MPI library knows of: they are of different MPIs."""
    launched = launched_size(environment)
    at_least = ""
    if launched is None and environment.get("PMIX_RANK", "").isdigit():
        launched, at_least = int(environment["PMIX_RANK"]) + 1, "at least "
    if launched is None or launched <= size:
        return
    says = f"MPI says {size} ({library.splitlines()[0].strip()}). Every process would train alone."
    others = (environment.get("OMPI_COMM_WORLD_SIZE"), environment.get("MPI_LOCALNRANKS"))  # mpirun may itself use srun
    if _step_size(environment) == launched and not any(others):
        raise UsageError(
            f"srun and the MPI library must speak the same PMI: srun started {launched} tasks, and {says} Choose it "
            "with srun --mpi=pmix (Open MPI) or srun --mpi=pmi2 (MPICH, Intel MPI); 'srun --mpi=list' tells what there "
            "is. Or start the job with mpirun in the batch script. Set RINGRED_BOOTSTRAP=single for tasks that are to "
            "be alone."
        )
    raise UsageError(
        "The launcher and the MPI library must be of the same MPI: the launcher started "
        f"{at_least}{launched} ranks, and {says} Start the job with 'ringred run', which finds the launcher of the MPI "
        "that mpi4py loads, or install mpi4py for the other MPI."
    )


def check_store(environment: Mapping[str, str]) -> None:
    """Raise where the variables that lead to torchrun's store are not all there, or do not make sense."""
    said = ", ".join(f"{name}={environment.get(name, '')!r}" for name in STORE_VARIABLES)
    numbers = [environment.get(name, "") for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")]
    if not (environment.get("MASTER_ADDR") and all(number.isdecimal() for number in numbers)):
        raise UsageError(f"A meeting in torchrun's store needs an address and three numbers: there is {said}.")
    if int(numbers[0]) >= int(numbers[1]):
        raise UsageError(f"RANK must be a number from 0 to WORLD_SIZE - 1: there is {said}.")


def choose(environment: Mapping[str, str]) -> str:
    """The kind of bootstrap that the environment asks for: "mpi", "store" or "single"."""
    asked = environment.get("RINGRED_BOOTSTRAP", "auto")
    if asked != "auto":
        return asked
    has_store = all(environment.get(name) for name in STORE_VARIABLES)
    if has_store and environment.get(TORCHRUN_VARIABLE):
        return "store"
    mpi = sys.modules.get("mpi4py.MPI")
    if _speaks_pmi(environment) or (mpi is not None and mpi.COMM_WORLD.Get_size() > 1):
        return "mpi"
    if has_store:  # before srun's: a script may make these variables of SLURM_PROCID and its like
        return "store"
    return "mpi" if _step_size(environment) is not None else "single"


@contextlib.contextmanager
def _needed(package: str, what: str) -> Iterator[None]:
    try:
        yield
    except ImportError as missing:
        raise SystemError(
            f"{what} needs the package {package}: {missing}. Install it into this environment ({sys.prefix}) with "
            f"'pip install {package}'."
        ) from missing


def start(environment: Mapping[str, str], generation: int, timeout_seconds: float, comm: Any = None) -> Bootstrap:
    """Meet the other ranks. `generation` counts the calls of init() in this process; it is the same on all ranks.
    `comm` is whom to meet where MPI is the way to: None, an mpi4py communicator, or ranks of MPI.COMM_WORLD.

    Raises:
        UsageError: launcher and MPI library do not belong together, or torchrun's variables make no sense.
        SystemError: a package that the launcher calls for is missing.
    """
    kind = choose(environment)
    if comm is not None and kind != "mpi":
        if environment.get("RINGRED_BOOTSTRAP", "auto") != "auto" or "mpi4py.MPI" not in sys.modules:
            raise UsageError(
                f"init(comm=...) is for ranks that meet through MPI: these meet through '{kind}' (RINGRED_BOOTSTRAP or "
                "the launcher says so). Leave comm out, and use process sets for a part of the ranks."
            )
        kind = "mpi"
    if kind == "mpi":
        with _needed("mpi4py", "A job that mpirun started"):
            return MpiBootstrap(environment, timeout_seconds, comm)
    if kind == "store":
        check_store(environment)
        if int(environment["WORLD_SIZE"]) == 1:
            return SingleBootstrap()
        with _needed("torch", "A job that torchrun started"):
            return StoreBootstrap(environment, generation, timeout_seconds)
    return SingleBootstrap()


def environment() -> dict[str, str]:
    """This process's RINGRED_* variables, and Horovod's where ours are not set, as the core reads them."""
    return read_environment().settings
