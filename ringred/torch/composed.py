"""An optimizer made of another one: the face of torch.optim.Optimizer, handed through.

Invariant: a ComposedOptimizer owns no parameter group and no state; the optimizer inside does, and stays usable.
"""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from ringred.errors import UsageError


class ComposedOptimizer(Optimizer):
    """Behaves as `optimizer` does; subclasses change what they need. Schedulers and scalers take it for an optimizer.

    Optimizer.__init__ is not called on purpose: it would set up groups and state of its own.
    """

    # A GradScaler may not take it for the fused optimizer that may be inside: it would tell the scale to the wrapper.
    _step_supports_amp_scaling = False

    def __init__(self, optimizer: Optimizer) -> None:
        self._inner = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Groups of the wrapped optimizer."""
        return self._inner.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """Per-parameter state of the wrapped optimizer."""
        return self._inner.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """Default options of the wrapped optimizer."""
        return self._inner.defaults

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the wrapped optimizer, which a run with any number of ranks can load."""
        return self._inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state into the wrapped optimizer; load the same one on all ranks."""
        self._inner.load_state_dict(state_dict)

    def __getattr__(self, name: str) -> Any:
        # Reached for what this class lacks: hook tables of the base class, and extras such as LBFGS's.
        if "_inner" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._inner, name)

    def __getstate__(self) -> dict[str, Any]:
        return self._inner.__getstate__()

    def __reduce_ex__(self, protocol: object) -> Any:
        raise UsageError(
            f"A {type(self).__name__} holds hooks and shared memory, it cannot be pickled or copied. "
            "Save its state_dict(), build it again and load_state_dict()."
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {self._inner!r}"
