"""The optimizer fused into the reduction: each rank updates its part of all parameters, for everyone on its node.

Invariant: parameters change inside step() only, on all ranks or on none, and have the same bits on all of them.

Parameters and gradients of one dtype lie side by side in this rank's arena, at the same places in both. Each rank owns
parts of that range (csrc/queue/steps.h) and the optimizer's state of these parts alone; a node has all. A step:
  1. Flags, as in exchange.py: which parameters have a gradient on some rank, and whether all ranks step.
  2. One operation of the engine for each dtype. Its members first agree on all numbers of the step (learning rates,
     factors, which parameters take part). Then each rank reads its parts of all ranks' gradients, adds them in rank
     order, updates its state and stores the new parameters to all ranks: one pass over memory. Across nodes it adds up
     what its node has, exchanges the sums with the owners of the same parts on other nodes, and updates its node.
The idea of a state that is spread over the ranks is that of ZeRO (Rajbhandari et al., 2020, arXiv:1910.02054).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.optim import SGD, Adam, AdamW, Optimizer

from ringred import _core
from ringred.errors import UsageError
from ringred.ops import Op
from ringred.torch.agreement import NamedTensor
from ringred.torch.buckets import Bucket, view_of
from ringred.torch.channel import EngineChannel
from ringred.torch.parameter_memory import OwnMemory, SharedMemory

RULES: dict[type[Optimizer], str] = {SGD: "SGD", Adam: "Adam", AdamW: "AdamW"}

STATES = {"SGD": ("momentum_buffer",), "Adam": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")}
STATES["AdamW"] = STATES["Adam"]


class FlatGroup:
    """The parameters of one dtype: where they, their gradients and this rank's part of the state lie.

    Args:
        members: (index of the parameter in the optimizer, name, parameter).
        channel: the ranks.
        rule: "SGD", "Adam" or "AdamW".
        number: of this group among those of the optimizer.
        share: keep one copy of the parameters for all ranks of a node.
    """

    def __init__(
        self,
        members: Sequence[tuple[int, str, torch.Tensor]],
        channel: EngineChannel,
        rule: str,
        number: int,
        share: bool,
    ) -> None:
        self.indices = [index for index, _, _ in members]
        self.parameters = [parameter for _, _, parameter in members]
        self.name = f"update.{number}"
        self._names = [name for _, name, _ in members]
        self._channel = channel
        self._rule = rule
        self.dtype = self.parameters[0].dtype
        self.gradients = Bucket(self.parameters, channel, lazy=True)
        self.offsets = self.gradients.offsets
        self.count = self.gradients.count
        size = self.parameters[0].element_size()
        self.owned = self._owned_by(channel.rank)
        self.states: list[torch.Tensor | None] = [None, None, None]
        self._plan: _core.UpdatePlan | None = None
        memory = SharedMemory if share else OwnMemory
        self.memory = memory(channel, max(self.count, 1) * size, self.name)
        self._views = [
            view_of(self.memory.block, begin, one) for begin, one in zip(self.offsets, self.parameters, strict=True)
        ]
        self._addresses = [view.data_ptr() for view in self._views]
        self._move_parameters(size)
        channel.let_go()
        _core.release_free_memory()  # where the parameters were, before gradients take theirs
        self.gradients.make()

    def _owned_by(self, rank: int) -> list[tuple[int, int]]:
        """The parts of a rank, as (begin, end), in the order in which its state has them."""
        return _core.owned_parts(self.count, self.parameters[0].element_size(), self._channel.nodes, rank)

    def _move_parameters(self, size: int) -> None:
        places = [begin * size for begin in self.offsets]
        with torch.no_grad():
            self.memory.fill(
                (begin, _bytes_of(parameter, view))
                for begin, parameter, view in zip(places, self.parameters, self._views, strict=True)
            )
            for parameter, view in zip(self.parameters, self._views, strict=True):
                parameter.data = view
        if isinstance(self.memory, SharedMemory):
            ends = [begin + parameter.nbytes for begin, parameter in zip(places, self.parameters, strict=True)]
            self.memory.name_ranges(list(zip(places, ends, self._names, strict=True)))

    def check_in_place(self) -> None:
        """Raise a usage error if a parameter has been given other memory."""
        if [parameter.data_ptr() for parameter in self.parameters] == self._addresses:
            return
        for name, parameter, address in zip(self._names, self.parameters, self._addresses, strict=True):
            if parameter.data_ptr() != address:
                raise UsageError(
                    f"With fused=True parameters stay where the optimizer has put them: {name!r} has other memory "
                    "now (it was resized, cast, moved, or its .data was assigned). Build the optimizer after such "
                    "changes, or copy values in place: parameter.data.copy_(values)."
                )

    def need(self, number: int) -> None:
        """Make state number 0, 1 or 2, of zeros, if there is none."""
        if self.states[number] is None:
            self.states[number] = torch.zeros(
                sum(end - begin for begin, end in self.owned), dtype=self.dtype, device="cpu"
            )
            self._plan = None

    def submit(
        self, op: Op, stretches: Sequence[tuple[int, int, int]], rates: Sequence[dict[str, Any]], **options: Any
    ) -> _core.Operation:
        """Start a step, or the norm of one."""
        places = self.memory.places
        if self._plan is None:
            self._plan = _core.UpdatePlan(self._channel.engine, self._rule, places, self.memory.shared, self.states)
        return self._channel.update(self.name, self.gradients.flat, op, self._plan, stretches, rates, **options)

    def gather(self, number: int) -> list[torch.Tensor] | None:
        """State number 0, 1 or 2 of each parameter, whole: a collective. None if there is no such state.

        Every node has all parts, with the same bits: those of the first rank's node are taken.
        """
        own = self.states[number]
        # A step that failed may have made one on some ranks.
        if not all(self._channel.share(own is not None, f"{self.name}.has.{number}")) or own is None:
            return None
        flat = torch.empty(self.count, dtype=self.dtype, device="cpu")
        nodes = self._channel.nodes
        gives = nodes[self._channel.rank] == nodes[0]
        parts: list[torch.Tensor] = self._channel.gather(own if gives else own[:0], f"{self.name}.state.{number}")
        for rank, part in enumerate(parts):
            if nodes[rank] != nodes[0]:
                continue
            at = 0
            for begin, end in self._owned_by(rank):
                flat[begin:end] = part[at : at + end - begin]
                at += end - begin
        return [
            flat[begin : begin + one.numel()].as_strided(one.shape, one.stride()).clone()
            for begin, one in zip(self.offsets, self._views, strict=True)
        ]

    def scatter(self, number: int, values: Mapping[int, torch.Tensor]) -> None:
        """Keep this rank's parts of a state that is given by the place of its parameter in this group; zeros else."""
        self.need(number)
        own = self.states[number]
        assert own is not None
        flat = torch.zeros(self.count, dtype=self.dtype, device="cpu")
        for place, value in values.items():
            view = self._views[place]
            begin = self.offsets[place]
            flat[begin : begin + view.numel()].as_strided(view.shape, view.stride()).copy_(value)
        at = 0
        for begin, end in self.owned:
            own[at : at + end - begin] = flat[begin:end]
            at += end - begin


class _Stretches(NamedTuple):
    """Which elements of a FlatGroup step, with which rates."""

    kinds: bytes  # of the gradients for which this holds
    places: list[tuple[int, int, int]]  # (begin, end, number of the rates)
    representatives: list[int]  # by number of the rates, the place of a parameter that has them


class FusedStep:
    """The fused step of one torch optimizer.

    Args:
        optimizer: SGD, Adam or AdamW of torch; its groups give the rates of every step.
        named: its parameters, with names.
        channel: the ranks.
        op: Average or Sum.
        keep_gradients: whether the averages replace the parameters' own gradients.
        share_parameters: keep one copy of the parameters for all ranks of a node; construction is a collective then.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        named: Sequence[NamedTensor],
        channel: EngineChannel,
        op: Op,
        keep_gradients: bool,
        share_parameters: bool,
    ) -> None:
        self.note_span: Callable[[float, float], None] = lambda begin, end: None  # is told when data moved
        self._optimizer = optimizer
        self._rule = check_optimizer(optimizer)
        self._op = op
        self.keeps_gradients = keep_gradients
        self._channel = channel
        by_dtype: dict[torch.dtype, list[tuple[int, str, torch.Tensor]]] = {}
        for index, (name, parameter) in enumerate(named):
            _check_parameter(name, parameter)
            by_dtype.setdefault(parameter.dtype, []).append((index, name, parameter))
        if share_parameters:  # only those of each node's first rank will be left
            channel.check_replicas([(name, parameter.detach()) for name, parameter in named])
        self.groups = [
            FlatGroup(members, channel, self._rule, number, share_parameters)
            for number, members in enumerate(by_dtype.values())
        ]
        self.steps = [0] * len(named)  # that each parameter has made
        self._started = [False] * len(named)  # whether its momentum buffer holds something
        self._known: dict[str, _Stretches] = {}
        self._group_of = {
            id(parameter): number
            for number, group in enumerate(optimizer.param_groups)
            for parameter in group["params"]
        }

    def check_in_place(self) -> None:
        """Raise a usage error if a parameter has been given other memory."""
        for group in self.groups:
            group.check_in_place()

    def measure(self, kinds: bytes) -> float:
        """The 2-norm of the reduced gradients of the parameters whose kind is not 0. Collective."""
        squares = 0.0
        for group in self.groups:
            places = [(begin, end, 0) for begin, end, _ in self._stretches(group, kinds).places]
            if places:
                operation = group.submit(self._op, places, [{}], measures=True)
                operation.wait()
                self.note_span(*operation.span)
                squares += operation.squares
        total = torch.tensor([squares], dtype=torch.float64, device="cpu")
        self._channel.allreduce_([total], Op.Sum, "norm").wait()
        return math.sqrt(total.item())

    def step(self, kinds: bytes, factor: float) -> None:
        """Update the parameters whose kind is not 0 with their reduced gradients times `factor`. Collective."""
        stretches = [self._stretches(group, kinds) for group in self.groups]
        rates = [
            [self._rates(group, place) for place in one.representatives]
            for group, one in zip(self.groups, stretches, strict=True)
        ]
        for number, (group, one) in enumerate(zip(self.groups, stretches, strict=True)):
            if one.places:
                # The first operation compares the rates of all groups: where they differ, no group steps.
                all_rates = [rate for others in rates[number:] for rate in others]
                options = {"factor": factor, "keeps_gradients": self.keeps_gradients}
                operation = group.submit(self._op, one.places, all_rates, **options)
                operation.wait()
                self.note_span(*operation.span)
            if self._rule == "SGD":
                self._start_momentum(group, kinds)
        self.steps = [steps + (kind != 0) for steps, kind in zip(self.steps, kinds, strict=True)]

    def _stretches(self, group: FlatGroup, kinds: bytes) -> _Stretches:
        """Where parameters of the group step that have a gradient: neighbours with the same rates together.

        It stays as it is from step to step, unless other parameters have gradients or momentum buffers are begun.
        """
        known = self._known.get(group.name)
        if known is not None and known.kinds == kinds:
            return known
        places: list[tuple[int, int, int]] = []
        representatives: list[int] = []
        numbers: dict[tuple[int, int, bool], int] = {}
        ends = [*group.offsets[1:], group.count]
        for place, (index, begin, end) in enumerate(zip(group.indices, group.offsets, ends, strict=True)):
            if not kinds[index]:
                continue
            key = (self._group_of[id(group.parameters[place])], self.steps[index], self._started[index])
            if key not in numbers:
                numbers[key] = len(representatives)
                representatives.append(place)
            if begin == end:
                continue  # it has a state like the others, without elements
            number = numbers[key]
            if places and places[-1][1:] == (begin, number):
                begin = places.pop()[0]
            places.append((begin, end, number))
        known = self._known[group.name] = _Stretches(kinds, places, representatives)
        return known

    def _start_momentum(self, group: FlatGroup, kinds: bytes) -> None:
        for index, parameter in zip(group.indices, group.parameters, strict=True):
            owner = self._group_of[id(parameter)]
            if kinds[index] and not self._started[index] and self._optimizer.param_groups[owner]["momentum"] != 0:
                self._started[index] = True
                self._known.pop(group.name, None)

    def _rates(self, group: FlatGroup, place: int) -> dict[str, Any]:
        """The rates of this step for the parameter at a place of the group. Makes the state that they need."""
        index = group.indices[place]
        options = self._optimizer.param_groups[self._group_of[id(group.parameters[place])]]
        rates = {"lr": float(options["lr"]), "weight_decay": float(options["weight_decay"])}
        rates["maximize"] = bool(options["maximize"])
        if self._rule == "SGD":
            rates["momentum"] = float(options["momentum"])
            rates["dampening"] = float(options["dampening"])
            rates["nesterov"] = bool(options["nesterov"])
            rates["first"] = not self._started[index]
            if rates["momentum"] != 0:
                group.need(0)
            return rates
        rates["beta1"], rates["beta2"] = (float(beta) for beta in options["betas"])
        rates["eps"] = float(options["eps"])
        rates["amsgrad"] = bool(options["amsgrad"])
        rates["step"] = float(self.steps[index] + 1)
        for number in range(3 if rates["amsgrad"] else 2):
            group.need(number)
        return rates

    def state_dict(self) -> dict[str, Any]:
        """What the torch optimizer's state_dict() would be after the same steps. Collective: all ranks gather it."""
        progress = self._channel.share((self.steps, self._started), "update.progress")
        if any(one != progress[0] for one in progress):
            raise UsageError(
                "With fused=True each rank has a part of the optimizer's state, and they are of different steps: "
                "load_state_dict() takes the same state on all ranks. Where one rank has read it, hand it to all with "
                "broadcast_object() first."
            )
        plain = self._optimizer.state_dict()
        state: dict[int, dict[str, Any]] = {}
        numbers = _numbers_in(plain, self._optimizer)
        for group in self.groups:
            whole = {key: group.gather(number) for number, key in enumerate(STATES[self._rule])}
            for place, (index, parameter) in enumerate(zip(group.indices, group.parameters, strict=True)):
                if not (self._started[index] if self._rule == "SGD" else self.steps[index]):
                    continue
                own: dict[str, Any] = {}
                if self._rule != "SGD":
                    own["step"] = torch.tensor(float(self.steps[index]), dtype=torch.float32, device="cpu")
                own |= {key: values[place] for key, values in whole.items() if values is not None}
                if not self._optimizer.param_groups[self._group_of[id(parameter)]].get("amsgrad"):
                    own.pop("max_exp_avg_sq", None)
                state[numbers[id(parameter)]] = own
        return {**plain, "state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a torch optimizer's state: this rank keeps its parts. Not a collective."""
        self._optimizer.load_state_dict(state_dict)  # checks it, and casts what it holds
        for group in self.groups:
            states = [self._optimizer.state.get(parameter, {}) for parameter in group.parameters]
            for number, key in enumerate(STATES[self._rule]):
                values = {place: state[key] for place, state in enumerate(states) if state.get(key) is not None}
                if values or group.states[number] is not None:
                    group.scatter(number, values)
            for index, state in zip(group.indices, states, strict=True):
                self.steps[index] = int(state.get("step", 0))
                self._started[index] = state.get("momentum_buffer") is not None
        self._optimizer.state.clear()
        self._known.clear()


def _bytes_of(tensor: torch.Tensor, view: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The elements of a tensor in the memory format of a view, as bytes."""
    dense = tensor.detach()
    if dense.stride() != view.stride():
        dense = torch.empty_strided(view.shape, view.stride(), dtype=view.dtype).copy_(dense)
    flat = dense.as_strided((dense.numel(),), (1,))
    return flat.view(torch.uint8).numpy()


def check_optimizer(optimizer: Optimizer) -> str:
    """The rule of an optimizer that can be fused.

    Raises:
        UsageError: it cannot.
    """
    rule = RULES.get(type(optimizer))
    if rule is None:
        raise UsageError(
            f"fused=True takes SGD, Adam or AdamW of torch.optim: this is {type(optimizer).__name__}. Use fused=False."
        )
    for group in optimizer.param_groups:
        for option in ("differentiable", "capturable"):
            if group.get(option):
                raise UsageError(f"fused=True does not go with {option}=True. Use fused=False, or leave it out.")
        if rule != "SGD" and bool(group.get("decoupled_weight_decay", rule == "AdamW")) != (rule == "AdamW"):
            raise UsageError("fused=True takes decoupled weight decay from AdamW: use torch.optim.AdamW.")
    if optimizer.state:
        raise UsageError(
            "fused=True takes an optimizer that has made no step: this one has a state. Build it anew, wrap it, and "
            "give the wrapper the state with load_state_dict()."
        )
    return rule


def _check_parameter(name: str, parameter: torch.Tensor) -> None:
    if not parameter.is_cpu:
        raise UsageError(
            f"fused=True works on the CPU only: parameter {name!r} is on {parameter.device}. Use fused=False."
        )
    if parameter.dtype not in (torch.float32, torch.float64) or parameter.layout != torch.strided:
        raise UsageError(
            f"fused=True takes dense float32 and float64 parameters: {name!r} is {parameter.dtype}, "
            f"{parameter.layout}. Use fused=False."
        )


def _numbers_in(state_dict: Mapping[str, Any], optimizer: Optimizer) -> dict[int, int]:
    """The number that a state_dict gives each parameter, by id."""
    return {
        id(parameter): number
        for saved, group in zip(state_dict["param_groups"], optimizer.param_groups, strict=True)
        for number, parameter in zip(saved["params"], group["params"], strict=True)
    }
