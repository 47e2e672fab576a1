"""The state of a fused optimizer, which each rank has a part of, is saved and loaded in torch's own format."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from fused_data import Make, Twins, assert_same_states, bound, give_gradients, gradients_of, make_parameters
from rank_data import needs_ranks
from torch import nn
from torch.optim import SGD, Adam, AdamW

import ringred as rr
import ringred.torch as hvd

DOUBLE, SINGLE = torch.float64, torch.float32

MAKERS: dict[str, Make] = {
    "sgd": lambda given: SGD(given, lr=0.05),
    "nesterov": lambda given: SGD(given, lr=0.05, momentum=0.9, nesterov=True),
    "dampening": lambda given: SGD(given, lr=0.05, momentum=0.9, dampening=0.5),
    "adam": lambda given: Adam(given, lr=0.01, weight_decay=0.01),
    "amsgrad": lambda given: AdamW(given, lr=0.01, amsgrad=True, betas=(0.9, 0.6)),
    "groups": lambda given: AdamW(
        [{"params": given[1::2], "lr": 0.005, "amsgrad": True}, {"params": given[::2]}], lr=0.01, weight_decay=0.01
    ),
}


def some_have(rank: int, index: int) -> bool:
    """Nobody has a gradient of number 3, and rank 0 none of number 1."""
    return index != 3 and (index != 1 or rank != 0 or hvd.size() == 1)


def mixed_parameters() -> list[nn.Parameter]:
    wide = make_parameters([(4, 3, 3, 2), (40,)])
    wide[0] = nn.Parameter(wide[0].detach().contiguous(memory_format=torch.channels_last))
    return [*make_parameters(), *wide, *make_parameters([(7, 3), (1,), (0,)], SINGLE)]


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize("name", MAKERS)
def test_state_is_that_of_the_torch_optimizer(name: str) -> None:
    """Keys, shapes, strides, dtypes, values and options, at the start and after steps; it is a copy."""
    twins = Twins(mixed_parameters(), MAKERS[name])
    assert_same_states(twins.fused.state_dict(), twins.plain.state_dict(), 0.0)
    for _ in range(3):
        twins.step(some_have)
    state = twins.fused.state_dict()
    assert_same_states(state, twins.plain.state_dict(), bound(1, SINGLE, 100.0))
    tensors = [value for own in state["state"].values() for value in own.values()]
    rr.check_replicas([(str(number), tensor) for number, tensor in enumerate(tensors)])
    for tensor in tensors if hvd.size() > 1 else []:
        tensor.fill_(100.0)
    twins.step(some_have)
    twins.check()


@pytest.mark.parametrize("name", MAKERS)
def test_a_plain_optimizer_goes_on_from_it(name: str) -> None:
    twins = Twins(mixed_parameters(), MAKERS[name])
    for _ in range(3):
        twins.step(some_have)
    state = through_a_file(twins.fused.state_dict())
    twins.plain = MAKERS[name](twins.theirs)
    twins.plain.load_state_dict(state)
    for _ in range(3):
        twins.step()
        twins.check()


@pytest.mark.parametrize("name", MAKERS)
def test_it_goes_on_from_the_state_of_a_plain_optimizer(name: str) -> None:
    """Into a new optimizer, and into one that has another state already."""
    source = Twins(mixed_parameters(), MAKERS[name])
    for _ in range(3):
        source.step(some_have)
    state = through_a_file(source.plain.state_dict())
    for steps in (0, 2):
        twins = Twins([nn.Parameter(one.detach().clone()) for one in source.theirs], MAKERS[name])
        twins.plain.load_state_dict(copy.deepcopy(state))
        for step in range(steps):
            give_gradients(twins.ours, gradients_of(hvd.rank(), step, twins.ours))
            twins.fused.step()
        for ours, theirs in zip(twins.ours, twins.theirs, strict=True):
            ours.data.copy_(theirs)
        twins.fused.zero_grad()
        twins.fused.load_state_dict(state)
        assert_same_states(twins.fused.state_dict(), twins.plain.state_dict(), 0.0)
        for _ in range(3):
            twins.step()
            twins.check()
        assert_same_states(twins.fused.state_dict(), twins.plain.state_dict(), bound(1, SINGLE, 100.0))


@pytest.mark.parametrize("name", ["dampening", "amsgrad"])
def test_an_empty_state_begins_anew(name: str) -> None:
    twins = Twins(make_parameters(), MAKERS[name])
    empty = copy.deepcopy(twins.plain.state_dict())
    for _ in range(2):
        twins.step()
    for optimizer in (twins.fused, twins.plain):
        optimizer.zero_grad()
        optimizer.load_state_dict(copy.deepcopy(empty))
    for _ in range(2):
        twins.step()
        twins.check()
    assert_same_states(twins.fused.state_dict(), twins.plain.state_dict(), bound(1, DOUBLE, 500.0))


def test_the_root_hands_out_its_options_and_what_all_have_of_the_state() -> None:
    twins = Twins(mixed_parameters(), MAKERS["amsgrad"])
    for _ in range(2):
        twins.step()
    for optimizer in (twins.fused, twins.plain):
        optimizer.param_groups[0]["lr"] = 0.001 if optimizer is twins.plain or hvd.rank() == 0 else 0.5
    twins.fused.zero_grad()
    hvd.broadcast_optimizer_state(twins.fused, 0)
    assert_same_states(twins.fused.state_dict(), twins.plain.state_dict(), bound(1, SINGLE, 100.0))
    twins.step()
    twins.check()


def test_a_state_that_one_rank_alone_has_loaded_is_no_state() -> None:
    needs_ranks(2)
    twins = Twins(make_parameters(), MAKERS["adam"])
    twins.step()
    state = twins.fused.state_dict()
    other = Twins(make_parameters(), MAKERS["adam"])
    if hvd.rank() == 0:
        other.fused.load_state_dict(state)
    for use in (other.fused.state_dict, lambda: hvd.broadcast_optimizer_state(other.fused, 0)):
        with pytest.raises(rr.UsageError, match=r"the same state on all ranks.*broadcast_object\(\) first"):
            use()
    other.fused.load_state_dict(state)
    assert_same_states(other.fused.state_dict(), state, 0.0)


def test_options_are_loaded_too() -> None:
    twins = Twins(make_parameters(), MAKERS["adam"])
    for optimizer in (twins.fused, twins.plain):
        other = optimizer.state_dict()
        other["param_groups"][0].update(lr=0.001, betas=(0.5, 0.6), eps=1e-3)
        optimizer.load_state_dict(other)
    for _ in range(3):
        twins.step()
        twins.check()
    assert twins.fused.param_groups[0]["lr"] == 0.001


@pytest.mark.parametrize("name", ["nesterov", "groups"])
@pytest.mark.parametrize("fewer_first", [True, False])
def test_another_number_of_ranks(name: str, fewer_first: bool) -> None:
    """Two ranks train, then all do; or the other way round."""
    needs_ranks(3)
    two = rr.add_process_set([0, hvd.size() - 1])
    phases = [two, hvd.global_process_set] if fewer_first else [hvd.global_process_set, two]
    parameters = mixed_parameters()
    state = None
    for members in phases:
        if members.included():
            twins = Twins([nn.Parameter(one.detach().clone()) for one in parameters], MAKERS[name], process_set=members)
            if state is not None:
                twins.fused.load_state_dict(copy.deepcopy(state))
                twins.plain.load_state_dict(copy.deepcopy(state))
            for _ in range(3):
                twins.step()
                twins.check()
            state = through_a_file(twins.fused.state_dict())
            assert_same_states(state, twins.plain.state_dict(), bound(1, SINGLE, 100.0))
            for one, trained in zip(parameters, twins.ours, strict=True):
                one.data.copy_(trained)
            twins.fused.close()
        if members is two and fewer_first:
            state = rr.broadcast_object(state, 0)
            hvd.broadcast_parameters([(str(number), one) for number, one in enumerate(parameters)], 0)
    rr.barrier()
    assert rr.remove_process_set(two)


def test_two_sets_train_two_models() -> None:
    """At the same time; each set of ranks has its own model and state."""
    needs_ranks(4)
    sets = [rr.add_process_set([0, 1]), rr.add_process_set([2, 3])]
    mine = sets[hvd.rank() // 2]
    twins = Twins(make_parameters(), MAKERS["amsgrad" if mine is sets[0] else "nesterov"], process_set=mine)
    for _ in range(2 + 3 * (mine is sets[1])):
        twins.step()
        twins.check()
    assert_same_states(twins.fused.state_dict(), twins.plain.state_dict(), bound(1, DOUBLE, 500.0))
    twins.fused.close()
    rr.barrier()
    for one in sets:
        assert rr.remove_process_set(one)


def test_a_set_of_one_rank_is_left_alone() -> None:
    needs_ranks(2)
    alone = rr.add_process_set([0])
    if alone.included():
        twins = Twins(make_parameters(), MAKERS["adam"], process_set=alone)
        before = [parameter.data_ptr() for parameter in twins.ours]
        for ours, theirs in zip(twins.ours, twins.theirs, strict=True):
            ours.grad = theirs.grad = torch.ones_like(ours)
        twins.fused.step()
        twins.plain.step()
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(twins.ours, twins.theirs, strict=True))
        assert [parameter.data_ptr() for parameter in twins.ours] == before
    assert rr.remove_process_set(alone)


def test_loading_between_backward_and_step_is_refused() -> None:
    """The gradients of the pass would be lost; passes count anew afterwards."""
    needs_ranks(2)
    twins = Twins(make_parameters(), MAKERS["adam"])
    twins.step()
    state = twins.fused.state_dict()
    twins.fused.zero_grad()
    give_gradients(twins.ours, gradients_of(hvd.rank(), 0, twins.ours))
    with pytest.raises(rr.UsageError, match=r"Call optimizer.step\(\) or optimizer.zero_grad\(\) on all ranks first"):
        twins.fused.load_state_dict(state)
    twins.fused.zero_grad()
    twins.fused.load_state_dict(state)
    twins.step()
    twins.check()


def test_state_of_another_model_is_refused_and_nothing_changes() -> None:
    twins = Twins(make_parameters(), MAKERS["adam"])
    twins.step()
    before = copy.deepcopy(twins.fused.state_dict())
    other = SGD(make_parameters([(2,)]), lr=0.1).state_dict()
    with pytest.raises(ValueError, match="size of optimizer's group"):
        twins.fused.load_state_dict(other)
    assert_same_states(twins.fused.state_dict(), before, 0.0)
    twins.step()
    twins.check()


def test_amsgrad_state_after_a_mismatch() -> None:
    """One rank alone asked for it once: no rank waits for its part."""
    needs_ranks(2)
    twins = Twins(make_parameters(), MAKERS["adam"])
    twins.step()
    give_and_take = gradients_of(hvd.rank(), 7, twins.ours)
    twins.fused.zero_grad()
    give_gradients(twins.ours, give_and_take)
    twins.fused.param_groups[0]["amsgrad"] = hvd.rank() == 0
    with pytest.raises(rr.MismatchError):
        twins.fused.step()
    twins.fused.param_groups[0]["amsgrad"] = False
    twins.fused.zero_grad()
    twins.step()
    assert_same_states(twins.fused.state_dict(), twins.plain.state_dict(), bound(1, DOUBLE, 500.0))
