"""The optimizer fused into the reduction: each rank updates its part of all parameters, for everyone.

Invariant: parameters change inside step() only, on all ranks or on none, and have the same bits on all of them.

Parameters and gradients of one dtype lie side by side in this rank's arena, at the same places in both. Each rank owns
parts of that range (csrc/queue/parts.h) and the optimizer's state of these parts alone. A step:
  1. Flags, as in exchange.py: which parameters have a gradient on some rank, and whether all ranks step.
  2. One operation of the engine for each dtype. Its members first agree on all numbers of the step (learning rates,
     factors, which parameters take part). Then each rank reads its parts of all ranks' gradients, adds them in rank
     order, updates its state and stores the new parameters to all ranks: one pass over memory.
The idea of a state that is spread over the ranks is that of ZeRO (Rajbhandari et al., 2020, arXiv:1910.02054).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer

from ringred import _core
from ringred.errors import UsageError
from ringred.ops import Op
from ringred.torch.agreement import NamedTensor
from ringred.torch.buckets import Bucket, view_of
from ringred.torch.channel import EngineChannel

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
    """

    def __init__(
        self, members: Sequence[tuple[int, str, torch.Tensor]], channel: EngineChannel, rule: str, number: int
    ) -> None:
        self.indices = [index for index, _, _ in members]
        self.parameters = [parameter for _, _, parameter in members]
        self.name = f"update.{number}"
        self._names = [name for _, name, _ in members]
        self._channel = channel
        self._rule = rule
        self.arena = channel.arena
        self.dtype = self.parameters[0].dtype
        self.gradients = Bucket(self.parameters, channel)
        self.offsets = self.gradients.offsets
        self.count = self.gradients.flat.numel()
        size = self.parameters[0].element_size()
        self.owned = _core.owned_parts(self.count, size, channel.size, channel.rank)
        self.states: list[torch.Tensor | None] = [None, None, None]
        self._places: list[tuple[int, int]] | None = None
        self._plan: _core.UpdatePlan | None = None
        self._block = channel.allocate(max(self.count, 1) * size)
        self._views = [
            view_of(self._block, begin, one) for begin, one in zip(self.offsets, self.parameters, strict=True)
        ]
        with torch.no_grad():
            for parameter, view in zip(self.parameters, self._views, strict=True):
                view.copy_(parameter)
                parameter.data = view

    def check_in_place(self) -> None:
        """Raise a usage error if a parameter has been given other memory."""
        for name, parameter, view in zip(self._names, self.parameters, self._views, strict=True):
            if parameter.data_ptr() != view.data_ptr() or parameter.shape != view.shape:
                raise UsageError(
                    f"With fused=True parameters stay where the optimizer has put them: {name!r} has other memory "
                    "now (it was resized, cast, moved, or its .data was assigned). Build the optimizer after such "
                    "changes, or copy values in place: parameter.data.copy_(values)."
                )

    def need(self, number: int) -> None:
        """Make state number 0, 1 or 2, of zeros, if there is none."""
        if self.states[number] is None:
            self.states[number] = torch.zeros(sum(end - begin for begin, end in self.owned), dtype=self.dtype)
            self._plan = None

    def submit(
        self, op: Op, stretches: Sequence[tuple[int, int, int]], rates: Sequence[dict[str, Any]], **options: Any
    ) -> _core.Operation:
        """Start a step, or the norm of one."""
        if self._places is None:
            offset = self._channel.engine.offset_of(self._block)
            offsets: list[int] = self._channel.share(offset, f"{self.name}.offset")
            self._places = list(zip(self._channel.ranks, offsets, strict=True))
        if self._plan is None:
            self._plan = _core.UpdatePlan(self._channel.engine, self._rule, self._places, self.states)
        return self._channel.update(self.name, self.gradients.flat, op, self._plan, stretches, rates, **options)

    def gather(self, number: int) -> list[torch.Tensor] | None:
        """State number 0, 1 or 2 of each parameter, whole: a collective. None if there is no such state."""
        own = self.states[number]
        if own is None:
            return None
        flat = torch.empty(self.count, dtype=self.dtype)
        parts: list[torch.Tensor] = self._channel.gather(own, f"{self.name}.state.{number}")
        for rank, part in enumerate(parts):
            at = 0
            for begin, end in _core.owned_parts(self.count, flat.element_size(), self._channel.size, rank):
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
        flat = torch.zeros(self.count, dtype=self.dtype)
        for place, value in values.items():
            view = self._views[place]
            begin = self.offsets[place]
            flat[begin : begin + view.numel()].as_strided(view.shape, view.stride()).copy_(value)
        at = 0
        for begin, end in self.owned:
            own[at : at + end - begin] = flat[begin:end]
            at += end - begin


class FusedStep:
    """The fused step of one torch optimizer.

    Args:
        optimizer: SGD, Adam or AdamW of torch; its groups give the rates of every step.
        named: its parameters, with names.
        channel: the ranks.
        op: Average or Sum.
        keep_gradients: whether the averages replace the parameters' own gradients.
    """

    def __init__(
        self, optimizer: Optimizer, named: Sequence[NamedTensor], channel: EngineChannel, op: Op, keep_gradients: bool
    ) -> None:
        self._optimizer = optimizer
        self._rule = check_optimizer(optimizer)
        self._op = op
        self._keep_gradients = keep_gradients
        self._channel = channel
        by_dtype: dict[torch.dtype, list[tuple[int, str, torch.Tensor]]] = {}
        for index, (name, parameter) in enumerate(named):
            _check_parameter(name, parameter)
            by_dtype.setdefault(parameter.dtype, []).append((index, name, parameter))
        self.groups = [
            FlatGroup(members, channel, self._rule, number) for number, members in enumerate(by_dtype.values())
        ]
        self.steps = [0] * len(named)  # that each parameter has made
        self._started = [False] * len(named)  # whether its momentum buffer holds something
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
            stretches, _ = self._stretches(group, kinds)
            if stretches:
                operation = group.submit(self._op, stretches, [{}], measures=True)
                operation.wait()
                squares += operation.squares
        total = torch.tensor([squares], dtype=torch.float64)
        self._channel.allreduce_([total], Op.Sum, "norm").wait()
        return math.sqrt(total.item())

    def step(self, kinds: bytes, factor: float) -> None:
        """Update the parameters whose kind is not 0 with their reduced gradients times `factor`. Collective."""
        for group in self.groups:
            stretches, rates = self._stretches(group, kinds, advance=True)
            if stretches:
                options = {"factor": factor, "keeps_gradients": self._keep_gradients}
                group.submit(self._op, stretches, rates, **options).wait()
        for index, kind in enumerate(kinds):
            if kind:
                self.steps[index] += 1

    def _stretches(
        self, group: FlatGroup, kinds: bytes, advance: bool = False
    ) -> tuple[list[tuple[int, int, int]], list[dict[str, Any]]]:
        """Where parameters step, neighbours with the same rates together, and the rates. Without `advance` one rate."""
        stretches: list[tuple[int, int, int]] = []
        rates: list[dict[str, Any]] = []
        numbers: dict[tuple[int, int, bool], int] = {}
        ends = [*group.offsets[1:], group.count]
        for place, (index, begin, end) in enumerate(zip(group.indices, group.offsets, ends, strict=True)):
            if not kinds[index] or begin == end:
                continue
            number = 0
            if advance:
                owner = self._group_of[id(group.parameters[place])]
                key = (owner, self.steps[index], self._started[index])
                if key not in numbers:
                    numbers[key] = len(rates)
                    rates.append(self._rates(group, *key))
                number = numbers[key]
                self._started[index] |= rates[number].get("momentum", 0.0) != 0
            if stretches and stretches[-1][1:] == (begin, number):
                begin = stretches.pop()[0]
            stretches.append((begin, end, number))
        return stretches, rates

    def _rates(self, group: FlatGroup, owner: int, steps: int, started: bool) -> dict[str, Any]:
        options = self._optimizer.param_groups[owner]
        rates = {"lr": float(options["lr"]), "weight_decay": float(options["weight_decay"])}
        rates["maximize"] = bool(options["maximize"])
        if self._rule == "SGD":
            rates["momentum"] = float(options["momentum"])
            rates["dampening"] = float(options["dampening"])
            rates["nesterov"] = bool(options["nesterov"])
            rates["first"] = not started
            if rates["momentum"] != 0:
                group.need(0)
            return rates
        rates["beta1"], rates["beta2"] = (float(beta) for beta in options["betas"])
        rates["eps"] = float(options["eps"])
        rates["amsgrad"] = bool(options["amsgrad"])
        rates["step"] = float(steps + 1)
        for number in range(3 if rates["amsgrad"] else 2):
            group.need(number)
        return rates

    def state_dict(self) -> dict[str, Any]:
        """What the torch optimizer's state_dict() would be after the same steps. Collective: all ranks gather it."""
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
                    own["step"] = torch.tensor(float(self.steps[index]), dtype=torch.float32)
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
                if values:
                    group.scatter(number, values)
            for index, state in zip(group.indices, states, strict=True):
                self.steps[index] = int(state.get("step", 0))
                self._started[index] = state.get("momentum_buffer") is not None
        self._optimizer.state.clear()


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
