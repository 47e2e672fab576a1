"""Train a small convolutional network on handwritten digits, data-parallel, and check the result in the open.

The same script runs alone and on any number of ranks:

    python examples/digits.py
    mpirun -np 4 python examples/digits.py
    torchrun --nproc-per-node 4 examples/digits.py

The data are the 1797 images of 8 x 8 pixels that ship inside scikit-learn; nothing is downloaded. The global batch does
not depend on the number of ranks: rank r takes every size-th sample of it. The model has no dropout and no batch
normalisation, whose random numbers and statistics would be those of a rank and not of the global batch; so the run must
do what a single process does, up to rounding. Three checks at the end decide the exit code:

1. Test accuracy is at least 0.97.
2. All ranks hold bitwise the same parameters.
3. The loss of every step equals that of a single process with the same global batch, within a bound on the relative
   difference. Both add the same numbers in different orders, so they differ by rounding, and training carries that on.
   How far is measured: a single process that takes the samples of each batch in another order and in several parts
   differs from one that does not for the same reason and no other. The bound is SPREAD_FACTOR times the largest such
   difference. Rounding moves the curve by less than 1e-4. Leaving a quarter of a batch out, in a single step, moves it
   by 3e-3 in the last epochs, and by 0.4 and more in the first five.
   The model is smooth for the sake of this check, with GELU and average pooling: at the kink of a ReLU or a tie in a
   max pool a rounding error flips a whole gradient, and the curves part by 1e-3 for no fault of anyone.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from collections.abc import Iterator

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import ringred as rr
import ringred.torch as hvd

SEED = 1
GLOBAL_BATCH = 60  # divisible by 1 to 6 ranks; others get unequal shares, weighted as they should be
TEST_SAMPLES = 360
ACCURACY_GOAL = 0.97
REORDERED_PARTS = (2, 3, 4)  # one single-process run each, with every batch shuffled and cut into so many parts
SPREAD_FACTOR = 20.0  # a run's difference is one draw, the spread the largest of three; seen: up to 3 times the spread


class Digits:
    """Images (sample, 1, 8, 8), centred, and labels (sample,), in training and test samples; equal on all ranks."""

    def __init__(self) -> None:
        images, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SEED))
        images = torch.from_numpy(images / 8.0 - 0.6).float().view(-1, 1, 8, 8)[order]
        labels = torch.from_numpy(labels).long()[order]
        self.test_images, self.test_labels = images[:TEST_SAMPLES], labels[:TEST_SAMPLES]
        self.images, self.labels = images[TEST_SAMPLES:], labels[TEST_SAMPLES:]

    def batches(self, epoch: int) -> Iterator[torch.Tensor]:
        """Indices of the global batches of an epoch; the last one may be short."""
        generator = torch.Generator().manual_seed(SEED + 1 + epoch)
        return iter(torch.randperm(len(self.labels), generator=generator).split(GLOBAL_BATCH))


def make_model() -> nn.Module:
    """Two convolutions and two linear layers, about 85 thousand parameters, all smooth."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(24, 48, 3, padding=1),
        nn.GELU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48 * 4 * 4, 96),
        nn.GELU(),
        nn.Linear(96, 10),
    )


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer that distributed and single-process training share."""
    # eps is well above rounding: Adam divides by the size of a gradient, and would blow up the noise in tiny ones.
    return torch.optim.AdamW(model.parameters(), lr=8e-3, weight_decay=0.05, eps=1e-5)


def batch_loss(model: nn.Module, data: Digits, samples: torch.Tensor, batch_length: int) -> torch.Tensor:
    """Return the part that `samples` contribute to the mean loss over a batch of `batch_length`."""
    return functional.cross_entropy(model(data.images[samples]), data.labels[samples], reduction="sum") / batch_length


def train(model: nn.Module, data: Digits, epochs: int) -> list[float]:
    """Train on all ranks; rank 0 prints a line an epoch. Returns the mean loss over the global batch, step by step."""
    rank, size = hvd.rank(), hvd.size()
    optimizer = hvd.DistributedOptimizer(make_optimizer(model), named_parameters=model.named_parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    losses: list[float] = []
    for epoch in range(epochs):
        start, communication = time.perf_counter(), optimizer.communication_seconds
        own_losses = []
        for batch in data.batches(epoch):
            optimizer.zero_grad()
            loss = batch_loss(model, data, batch[rank::size], len(batch))
            (loss * size).backward()  # averaging divides by size again: what remains is the mean over the global batch
            optimizer.step()
            own_losses.append(loss.detach())
        schedule.step()
        seconds = time.perf_counter() - start
        share = (optimizer.communication_seconds - communication) / seconds
        epoch_losses = hvd.allreduce_(torch.stack(own_losses).double(), op=hvd.Sum)
        accuracy = test_accuracy(model, data)
        losses += epoch_losses.tolist()
        say(
            f"epoch {epoch + 1:2d}/{epochs}  loss {epoch_losses.mean():.4f}  test accuracy {accuracy:.4f}  "
            f"{len(data.labels) / seconds:6.0f} samples/s  communication {100 * share:4.1f} %"
        )
    return losses


def train_alone(model: nn.Module, data: Digits, epochs: int, parts: int = 1) -> list[float]:
    """Train in this process only; `parts` > 1 shuffles every batch and accumulates so many parts: other rounding."""
    optimizer = make_optimizer(model)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    generator = torch.Generator().manual_seed(SEED + parts)
    losses = []
    for epoch in range(epochs):
        for batch in data.batches(epoch):
            samples = batch if parts == 1 else batch[torch.randperm(len(batch), generator=generator)]
            optimizer.zero_grad()
            part_losses = [batch_loss(model, data, part, len(batch)) for part in samples.chunk(parts)]
            for loss in part_losses:
                loss.backward()
            optimizer.step()
            losses.append(sum(loss.item() for loss in part_losses))
        schedule.step()
    return losses


def test_accuracy(model: nn.Module, data: Digits) -> float:
    """Share of right answers on the test samples, which the ranks divide among themselves."""
    own = slice(hvd.rank(), None, hvd.size())
    with torch.no_grad():
        right = (model(data.test_images[own]).argmax(dim=1) == data.test_labels[own]).sum().reshape(1)
    return hvd.allreduce_(right, op=hvd.Sum).item() / len(data.test_labels)


def count_differing_bytes(model: nn.Module) -> tuple[int, int]:
    """Compare parameters between ranks: the number of bytes whose minimum and maximum differ, and of all bytes."""
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()]).view(torch.uint8)
    lowest, highest = hvd.allreduce(flat, op=hvd.Min), hvd.allreduce(flat, op=hvd.Max)
    return int((lowest != highest).sum()), flat.numel()


def compare_with_single_process(initial_model: nn.Module, data: Digits, losses: list[float]) -> tuple[float, float]:
    """Return how far `losses` are from those of a single process, and the bound (see the top of the file)."""
    epochs = len(losses) // len(list(data.batches(0)))
    reference = train_alone(copy.deepcopy(initial_model), data, epochs)
    reordered = [train_alone(copy.deepcopy(initial_model), data, epochs, parts) for parts in REORDERED_PARTS]
    spread = max(largest_difference(reference, run) for run in reordered)
    return largest_difference(reference, losses), SPREAD_FACTOR * spread


def largest_difference(reference: list[float], losses: list[float]) -> float:
    """Return the largest relative difference of two loss curves."""
    return max(abs(loss - expected) / expected for expected, loss in zip(reference, losses, strict=True))


def who_was_late() -> str:
    """Return a line about the rank for which the others have waited longest."""
    late = hvd.stragglers()[0]
    return (
        f"late: rank {late.rank} came last {late.times_last} times; the others waited {late.seconds:.2f} s for it alone"
    )


def say(text: str) -> None:
    """Print on rank 0."""
    if hvd.rank() == 0:
        print(text, flush=True)


def main() -> int:
    """Train, check, and return the exit code, equal on all ranks."""
    parser = argparse.ArgumentParser(description="Train on handwritten digits, data-parallel.")
    parser.add_argument("--epochs", type=int, default=15)
    epochs = parser.parse_args().epochs
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    hvd.init()
    data = Digits()
    torch.manual_seed(SEED + hvd.rank())  # ranks begin apart on purpose; the broadcast brings them together
    model = make_model()
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    initial_model = copy.deepcopy(model)
    say(f"{hvd.size()} rank(s), {len(data.labels)} training samples, global batch {GLOBAL_BATCH}")
    losses = train(model, data, epochs)
    say(who_was_late())
    say(f"last step: {rr.step_report()}")

    passed = []
    accuracy = test_accuracy(model, data)
    passed.append(accuracy >= ACCURACY_GOAL)
    say(f"test accuracy {accuracy:.4f}, goal {ACCURACY_GOAL}: {verdict(passed[-1])}")

    differing, total = count_differing_bytes(model)
    passed.append(differing == 0)
    say(f"parameters on {hvd.size()} rank(s): {differing} of {total} bytes differ: {verdict(passed[-1])}")

    answer = torch.zeros(2, dtype=torch.float64)
    if hvd.rank() == 0:
        answer = torch.tensor(compare_with_single_process(initial_model, data, losses), dtype=torch.float64)
    difference, bound = hvd.broadcast_(answer, root_rank=0).tolist()
    passed.append(difference <= bound)
    say(
        f"loss curve of {len(losses)} steps against a single process: largest relative difference {difference:.1e}, "
        f"bound {bound:.1e} ({SPREAD_FACTOR:.0f} x what the order of samples changes): {verdict(passed[-1])}"
    )
    hvd.shutdown()
    return 0 if all(passed) else 1


def verdict(passed: bool) -> str:
    """Word for an outcome."""
    return "passed" if passed else "FAILED"


if __name__ == "__main__":
    sys.exit(main())
