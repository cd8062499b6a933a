"""The text of ``explain()``."""

from __future__ import annotations

from dynprune.lowering.ir import Program
from dynprune.plan.plan import Plan


def explain(program: Program, plan: Plan, *, row_wise: bool) -> str:
    """One line for every layer: what runs it, and what may be pruned or why not."""
    width = max((len(note.name) for note in program.notes), default=0)
    lines = [f"{note.name:<{width}}  {note.what}" for note in program.notes]
    for name, mask in plan.active.items():
        group = program.groups[name]
        reads = ", ".join(program.reads[i].name for i in group.reads)
        layers = f" of {', '.join(group.layers)}" if len(group.layers) > 1 else ""
        lines.append(f"group {name}: {int(mask.sum())} of {len(mask)} units active{layers}, read at {reads}")
    lines.append(
        "canaries: a few rows of a batch"
        if row_wise
        else "canaries: whole batches, because rows of a batch are not independent in this model "
        "or could not be shown to be"
    )
    return "\n".join(lines)
