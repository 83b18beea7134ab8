"""The hierarchy of a model's modules by joules: for icicles, and as folded stacks."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from layer_energy.report.report import WAITING

if TYPE_CHECKING:
    from layer_energy.report.report import EnergyReport

CHILDREN_SHOWN = 150
"""Of a module with more parts than that, the costliest are shown and the rest as one."""

NODES_SHOWN = 1000
"""Of a whole model; plotly takes seconds to lay out ten thousand."""


@dataclass(slots=True)
class Node:
    """A module, or the operations of one name in a module.

    Attributes:
        name: last part of the module's path, or torch's name of the operation.
        kind: layer type of an operation; empty for modules.
        energy_j: predicted joules, all parts included.
        calls: operations in it.
        parts: sub-modules and operations by name, in the order they first run.
    """

    name: str
    kind: str = ""
    energy_j: float = 0.0
    calls: int = 0
    parts: dict[tuple[str, str], Node] = field(default_factory=dict)

    def part(self, name: str, kind: str = "") -> Node:
        """The part of that name, made where it is new."""
        return self.parts.setdefault((name, kind), Node(name, kind))


def module_tree(report: EnergyReport) -> Node:
    """The model as a tree whose leaves are operations."""
    root = Node(report.model)
    for layer in report.layers:
        nodes = [root]
        for name in _modules(layer.call.path):
            nodes.append(nodes[-1].part(name))
        nodes.append(nodes[-1].part(layer.call.op, layer.call.workload.kind))
        for node in nodes:
            node.energy_j += layer.estimate.energy_j
            node.calls += 1
    if report.waiting_j:
        root.part(WAITING, WAITING).energy_j = report.waiting_j
        root.energy_j += report.waiting_j
    return root


def costliest_parts(root: Node) -> list[tuple[int, Node]]:
    """``(index of the parent, node)``, parents first; the root's parent is -1.

    The costliest modules are opened first, up to ``NODES_SHOWN`` nodes; those left closed are
    leaves. A module of a single operation is that operation.
    """
    nodes = [(-1, root)]
    closed = [(-root.energy_j, 0)]
    while closed:
        _, index = heapq.heappop(closed)
        parts = [_joined(part) for part in _shown(nodes[index][1])]
        if len(nodes) + len(parts) > NODES_SHOWN:
            break
        for part in parts:
            if part.parts:
                heapq.heappush(closed, (-part.energy_j, len(nodes)))
            nodes.append((index, part))
    return nodes


def folded_stacks(report: EnergyReport) -> str:
    """One line a stack, ``model;module;operation nanojoules``, as flame-graph tools read them."""
    stacks: dict[str, float] = {}
    for layer in report.layers:
        stack = _stack([report.model, *_modules(layer.call.path), layer.call.op])
        stacks[stack] = stacks.get(stack, 0.0) + layer.estimate.energy_j
    if report.waiting_j:
        stacks[_stack([report.model, WAITING])] = report.waiting_j
    return "".join(f"{stack} {round(energy_j * 1e9)}\n" for stack, energy_j in stacks.items())


def _stack(frames: Iterable[str]) -> str:
    return ";".join(" ".join(frame.replace(";", ":").split()) for frame in frames)


def _modules(path: str) -> list[str]:
    return path.split(".") if path else []


def _joined(node: Node) -> Node:
    parts = list(node.parts.values())
    if len(parts) == 1 and parts[0].kind:
        leaf = parts[0]
        return Node(f"{node.name} · {leaf.name}", leaf.kind, leaf.energy_j, leaf.calls)
    return node


def _shown(node: Node) -> list[Node]:
    parts = list(node.parts.values())
    if len(parts) <= CHILDREN_SHOWN:
        return parts
    costliest = sorted(range(len(parts)), key=lambda i: -parts[i].energy_j)[: CHILDREN_SHOWN - 1]
    kept = set(costliest)
    rest = [part for i, part in enumerate(parts) if i not in kept]
    others = Node(
        f"{len(rest)} others",
        energy_j=sum(part.energy_j for part in rest),
        calls=sum(part.calls for part in rest),
    )
    return [part for i, part in enumerate(parts) if i in kept] + [others]
