"""What goes wrong with named operations: death at any moment, departure, forks, and what idling costs.

No launcher is there to end the other ranks: they have to notice by themselves.
"""

from __future__ import annotations

import signal

import pytest
from jobs import check, run_ranks

pytestmark = pytest.mark.timeout(90)

PREPARED = """
rr.init()
processes = meeting.everybody()
pair = rr.add_process_set([0, 2])
arrays = [np.full(n, rr.rank() + 1.0) for n in (3, 2000, 300_000)]
def step():
    order = list(range(3))
    np.random.default_rng(time.monotonic_ns()).shuffle(order)
    handles = [rr.allreduce_async(arrays[i], rr.Sum, name=f"tensor.{i}") for i in order]
    handles.append(rr.allgather_async(arrays[0][:rr.rank()], name="rows"))
    for handle in handles: handle.wait()
    assert (handles[0].wait() == 6).all()
"""


@pytest.mark.parametrize("seconds", [0.05, 0.11, 0.17, 0.23, 0.31])
def test_rank_killed_somewhere_in_a_busy_loop(seconds: float) -> None:
    program = PREPARED + (
        "if rr.rank() == 1:\n"
        f"    signal.setitimer(signal.ITIMER_REAL, {seconds})\n"
        "    signal.signal(signal.SIGALRM, signal.SIG_DFL)\n"
        "meeting.expect(rr.PeerLostError, lambda: meeting.again_and_again(step), 'rank 1', 'ended', seconds=6)\n"
        "meeting.expect(rr.PeerLostError, lambda: rr.allreduce_async(arrays[0]).wait(), 'rank 1', seconds=1)\n"
        "for i in range(3): assert (rr.allreduce_async(arrays[0], rr.Sum, process_set=pair).wait() == 4).all()\n"
        "rr.shutdown()\n"
    )
    check(run_ranks(3, program), 0, -signal.SIGALRM, 0)


def test_a_dead_sequencer_is_noticed_too() -> None:
    program = PREPARED + (
        "step()\n"
        "if rr.rank() == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "meeting.expect(rr.PeerLostError, step, 'rank 0', seconds=3)\n"
    )
    check(run_ranks(3, program), -signal.SIGKILL, 0, 0)


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ("sys.exit(0)", "rank 1 left (its process came to its end)"),
        ("rr.shutdown(); meeting.everybody(2)", "rank 1 left (it called shutdown())"),
        ("os._exit(0)", "the process of rank 1 ended"),
    ],
)
def test_rank_that_leaves_early(ending: str, words: str) -> None:
    program = PREPARED + (
        "step()\n"
        "if rr.rank() == 1:\n"
        f"    {ending}\n"
        "else:\n"
        f"    meeting.expect(rr.PeerLostError, step, {words!r}, seconds=5)\n"
        "    if 'meeting' in " + repr(ending) + ": meeting.everybody(2)\n"
    )
    check(run_ranks(3, program))


def test_rank_that_leaves_after_the_last_operation_is_not_missed() -> None:
    program = """
        for turn in range(15):
            rr.init()
            handles = [rr.allreduce_async(np.ones(n), rr.Sum, name=str(n)) for n in (1, 5000, 400_000)]
            handles.append(rr.broadcast_async(np.ones(400_000), turn % 3, name="b"))
            for handle in handles: handle.wait()
            rr.shutdown()
    """
    check(run_ranks(3, program))


def test_shutdown_fails_operations_in_flight_by_name() -> None:
    program = PREPARED + (
        "if rr.rank() == 0:\n"
        "    handle = rr.allreduce_async(np.ones(4), name='never')\n"
        "    rr.shutdown()\n"
        "    meeting.expect(rr.UsageError, handle.wait, 'never', 'shut down', seconds=1)\n"
        "    meeting.expect(rr.UsageError, lambda: rr.allreduce_async(np.ones(4)), 'init', seconds=1)\n"
    )
    check(run_ranks(3, program))


def test_forked_child_cannot_take_part_and_does_no_harm() -> None:
    program = PREPARED + (
        "if rr.rank() == 0:\n"
        "    handle = rr.allreduce_async(np.ones(4), rr.Sum, name='in flight')\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        try:\n"
        "            meeting.expect(rr.UsageError, step, 'forked child', seconds=1)\n"
        "            meeting.expect(rr.UsageError, handle.wait, 'forked child', seconds=1)\n"
        "        except BaseException as error:\n"
        "            print(error, flush=True)\n"
        "            os._exit(1)\n"
        "        sys.exit(0)\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "else:\n"
        "    time.sleep(0.3)\n"
        "    handle = rr.allreduce_async(np.ones(4), rr.Sum, name='in flight')\n"
        "assert (handle.wait() == 3).all()\n"
        "for _ in range(5): step()\n"
    )
    check(run_ranks(3, program, settings={"RINGRED_TIMEOUT_SECONDS": "20"}))


def test_nothing_wakes_up_while_nothing_is_submitted() -> None:
    """Threads other than the one that sleeps here switch not once in two seconds, and the process takes no time."""
    program = PREPARED + (
        "def switches():\n"
        "    total = 0\n"
        "    for thread in os.listdir('/proc/self/task'):\n"
        "        if int(thread) == os.getpid(): continue\n"
        "        for line in open(f'/proc/self/task/{thread}/status'):\n"
        "            if 'ctxt_switches' in line: total += int(line.split()[1])\n"
        "    return total\n"
        "step()\n"
        "time.sleep(2.5)\n"
        "before, busy = switches(), time.process_time()\n"
        "time.sleep(2)\n"
        "assert switches() == before and time.process_time() - busy < 0.05, (switches() - before)\n"
        "meeting.everybody(2)\n"
    )
    check(run_ranks(3, program))


def test_a_caller_that_waits_leaves_the_core_alone() -> None:
    program = PREPARED + (
        "step()\n"
        "if rr.rank() == 1: time.sleep(1)\n"
        "start, busy = time.monotonic(), time.process_time()\n"
        "rr.allreduce_async(np.ones(4), name='late').wait()\n"
        "taken, busy = time.monotonic() - start, time.process_time() - busy\n"
        "assert rr.rank() == 1 or (taken > 0.8 and busy < 0.05 * taken), (taken, busy)\n"
        "late = rr.stragglers()[0]\n"
        "assert late.rank == 1 and late.seconds > 0.8, late\n"
    )
    check(run_ranks(3, program))


def test_gradients_outlive_a_fork_and_the_engine() -> None:
    program = (
        "import torch, ringred.torch as hvd\n"
        "def trained():\n"
        "    torch.manual_seed(0)\n"
        "    model = torch.nn.Linear(1024, 512)\n"
        "    sgd = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "    optimizer = hvd.DistributedOptimizer(sgd, model.named_parameters())\n"
        "    for _ in range(3):\n"
        "        optimizer.zero_grad()\n"
        "        model(torch.randn(4, 1024)).square().mean().backward()\n"
        "        optimizer.step()\n"
        "    begin, end = rr.world.engine().arena\n"
        "    assert begin <= model.weight.grad.data_ptr() < end\n"
        "    return model, optimizer\n"
        "rr.init()\n"
        "model, optimizer = trained()\n"
        "kept, before = model.weight.grad, model.weight.grad.clone()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    del kept\n"
        "    model.weight.grad = None\n"
        "    torch.empty(512, 1024).zero_()\n"
        "    os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0 and torch.equal(kept, before)\n"
        "rr.shutdown()\n"
        "assert torch.equal(kept, before)\n"
        "kept.add_(1)\n"
        "del optimizer, kept\n"
        "model.weight.grad = None\n"
        "rr.init()\n"
        "rr.check_replicas(trained()[0])\n"
        "rr.shutdown()\n"
    )
    check(run_ranks(2, program))
