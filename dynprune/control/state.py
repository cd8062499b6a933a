"""What a controller has learned and chosen, as plain tensors and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from dynprune.control.policy import GroupState
from dynprune.control.statistics import Statistics
from dynprune.plan.substitute import Substitute

if TYPE_CHECKING:
    from dynprune.control.controller import Controller

_VERSION = 1
_PARTS = {
    "groups", "forced", "statistics", "substitutes", "batch", "observing", "frozen", "counts", "guard",
    "budget", "compensation",
}  # fmt: skip
_RUNNING = ("usage", "means", "read_usage", "products")


def _items(running: Any) -> Any:
    return running.items() if isinstance(running, dict) else enumerate(running)


def _statistics(statistics: Statistics) -> dict[str, Any]:
    result: dict[str, Any] = {"rows": statistics.rows}
    for name in _RUNNING:
        items = _items(getattr(statistics, name))
        result[name] = {
            str(key): {field: value for field, value in vars(one).items() if field != "window"}
            for key, one in items
        }
    return result


def _fill(statistics: Statistics, state: Mapping[str, Any]) -> Statistics:
    for name in _RUNNING:
        for key, one in _items(getattr(statistics, name)):
            vars(one).update(state[name][str(key)])
    statistics.rows = state["rows"]
    return statistics


def save(controller: Controller) -> dict[str, Any]:
    """Active sets, statistics, constants and counts; tensors are shared, which nothing writes to."""
    guard, budget = controller.guard, controller.budget
    with controller.lock:
        return {
            "version": _VERSION,
            "groups": {
                name: {"active": s.active, "flipped": s.flipped} for name, s in controller.states.items()
            },
            "forced": dict(controller.forced),
            "statistics": _statistics(controller.statistics),
            "substitutes": {name: [s.constants, s.mixing] for name, s in controller.plan.substitutes.items()},
            "batch": controller.batch,
            "observing": controller.observing,
            "frozen": controller.frozen,
            "counts": dict(controller.counts),
            "guard": None if guard is None else guard.state(),
            "budget": None if budget is None else budget.state(),
            "compensation": None if controller.trial is None else controller.trial.choice,
        }


def load(controller: Controller, state: Mapping[str, Any]) -> None:
    """Adopt what :func:`save` gave, of a controller of the same model, and publish its choice.

    Raises:
        ValueError: it comes from another model or version, or something of it is missing.
    """
    if state.get("version") != _VERSION:
        raise ValueError(
            f"load_state_dict: expected a state of version {_VERSION}, got {state.get('version')!r}"
        )
    missing = _PARTS - set(state)
    if missing:
        raise ValueError(
            f"load_state_dict: expected a state with {', '.join(sorted(_PARTS))}, "
            f"got one without {', '.join(sorted(missing))}"
        )
    expected = {name: group.units for name, group in controller.program.groups.items()}
    got = {name: len(group["active"]) for name, group in state["groups"].items()}
    reads = {read.name for read in controller.program.reads}
    if expected != got or reads != set(state["substitutes"]):
        raise ValueError(f"load_state_dict: expected a state of groups {expected}, got {got}")
    with controller.lock, torch.inference_mode(False), torch.no_grad():
        groups = state["groups"]
        controller.states = {n: GroupState(g["active"], g["flipped"]) for n, g in groups.items()}
        controller.forced = dict(state["forced"])
        fresh = Statistics(controller.program, controller.config.window)
        controller.statistics = _fill(fresh, state["statistics"])
        controller.batch = state["batch"]
        controller.observing = state["observing"]
        controller.frozen = state["frozen"]
        # A state of before there was a count has none of it.
        controller.counts = {name: state["counts"].get(name, 0) for name in controller.counts}
        if controller.trial is not None and state["compensation"] is not None:
            controller.trial.choice = state["compensation"]
        controller.publish({n: Substitute(*values) for n, values in state["substitutes"].items()})
        for name in ("guard", "budget"):
            judge = getattr(controller, name)
            if judge is not None and state[name] is not None:
                judge.load(state[name])
