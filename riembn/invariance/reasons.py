"""Says why a weight is scale-invariant or not: what its output meets in the graph of gradients."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

_NORMALIZATIONS = {
    "BatchNorm": "BatchNorm",
    "LayerNorm": "LayerNorm",
    "GroupNorm": "GroupNorm",
    "RmsNorm": "RMSNorm",
    "RMSNorm": "RMSNorm",
    "Rsqrt": "a normalization",
    "LinalgVectorNorm": "a normalization",
    "WeightNorm": "WeightNorm",
}
# Functions that are not positive-homogeneous; what is not named here passes a scale on (ReLU, pooling, …).
_BREAKING = {
    "Gelu": "GELU",
    "Silu": "SiLU",
    "Hardswish": "Hardswish",
    "Hardsigmoid": "Hardsigmoid",
    "Hardtanh": "ReLU6 or Hardtanh",
    "LogSigmoid": "LogSigmoid",
    "LogSoftmax": "a softmax",
    "Sigmoid": "Sigmoid",
    "Tanh": "Tanh",
    "Elu": "ELU",
    "Softplus": "Softplus",
    "Softshrink": "Softshrink",
    "Hardshrink": "Hardshrink",
    "Mish": "Mish",
    "Softmax": "a softmax",
    "Exp": "an exponential",
    "Log": "a logarithm",
    "Sin": "a sine",
    "Cos": "a cosine",
    "LinalgMatrixExp": "a matrix exponential",
    "LinalgSolveEx": "a linear solve",
    "LinalgLuSolve": "a linear solve",
    "LinalgHouseholderProduct": "a product of reflections",
    "LinalgQr": "an orthogonalization",
}
_MIXING = ("Convolution", "Addmm", "Mm", "Bmm", "Linear", "Mv")

Node = Any  # torch.autograd.graph.Node


class Reasons:
    """The graph from every parameter to the outputs, asked for what a weight meets first.

    Args:
        outputs: Tensors that still carry their graph.
        parameters: By name; those that the outputs depend on.

    Attributes:
        divides: Whether anything is divided by what was computed, as a normalization written by hand does.
        opaque: Whether a function has a gradient of its own, which need not be that of what it computes.
    """

    def __init__(self, outputs: Sequence[Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
        self._consumers: dict[Node, list[Node]] = {}
        self._leaves: dict[int, Node] = {}
        pending = [t.grad_fn for t in outputs if t.grad_fn is not None]
        seen: set[Node] = set(pending)
        while pending:
            node = pending.pop()
            if hasattr(node, "variable"):
                self._leaves[id(node.variable)] = node
            for before, _ in node.next_functions:
                if before is not None:
                    self._consumers.setdefault(before, []).append(node)
                    if before not in seen:
                        seen.add(before)
                        pending.append(before)
        self.divides = any(map(_is_division, seen))
        self.opaque = any(isinstance(n, BackwardCFunction) and "Checkpoint" not in _kind(n) for n in seen)
        self._parameters = parameters
        self._own = {id(p) for p in parameters.values()}

    def normalization(self, name: str) -> str:
        """The normalization that the output of an invariant weight meets, in words."""
        return next((norm for norm, _ in self._walk(name) if norm), "in front of a normalization")

    def obstacle(self, name: str) -> str:
        """What stands between a weight that is not invariant and a normalization."""
        if self._is_scale(name):
            return "a bias, shift or scale"
        obstacle = next((text for _, text in self._walk(name) if text), "")
        return obstacle or "shares its normalization with other weights"

    def _is_scale(self, name: str) -> bool:
        """Whether a parameter is one row of factors: they multiply what is computed, or go into a normalization."""
        parameter, node = self._parameters[name], self._leaves.get(id(self._parameters[name]))
        if node is None or parameter.numel() != max(parameter.shape):
            return False
        while len(consumers := self._consumers.get(node, [])) == 1:
            if _kind(consumers[0]) == "Mul":
                return True
            if any(word in _kind(consumers[0]) for word in _NORMALIZATIONS):
                return _position(node, consumers[0]) > 0
            if len(consumers[0].next_functions) != 1:
                return False
            node = consumers[0]
        return False

    def _walk(self, name: str) -> Sequence[tuple[str, str]]:
        """(normalization, obstacle) in the order of distance from the weight; one of each pair is empty."""
        start = self._leaves.get(id(self._parameters[name]))
        if start is None:
            return [("", "changes the output")]
        found: list[tuple[str, str]] = []
        queue = deque([(start, False)])
        seen = {start}
        while queue:
            node, concatenated = queue.popleft()
            consumers = self._consumers.get(node, [])
            if not consumers:
                found.append(("", "reaches the output without a normalization"))
            for consumer in consumers:
                if consumer in seen:
                    continue
                seen.add(consumer)
                norm, obstacle = self._meets(node, consumer, concatenated)
                if norm or obstacle:
                    found.append((norm, obstacle))
                else:
                    queue.append((consumer, concatenated or _kind(consumer).startswith("Cat")))
        return found

    def _meets(self, node: Node, consumer: Node, concatenated: bool) -> tuple[str, str]:
        kind = _kind(consumer)
        norm = next((text for word, text in _NORMALIZATIONS.items() if word in kind), "")
        if norm == "BatchNorm" and getattr(consumer, "_saved_training", True) is False:
            return "", "meets a BatchNorm that is frozen"
        if norm and self._leaf(node) is not None:
            return "normalized itself before it is used", ""
        if norm == "BatchNorm" and _is_instance_norm(consumer, self._consumers.get(consumer, [])):
            norm = "InstanceNorm"
        if norm:
            return f"in front of {norm}", ""
        if kind.startswith("ScaledDotProduct") and _position(node, consumer) < 2:
            return "", "passes through the softmax of attention"
        if kind in _BREAKING:
            return "", f"passes through {_BREAKING[kind]}"
        others = [n for n, _ in consumer.next_functions if n is not None and n is not node]
        if kind in ("Add", "Sub") and others:
            learned = [p for p in map(self._leaf, others) if p is None or p is not self._leaf(node)]
            if None in learned:
                return "", "feeds a sum with another path"
            if any(p is not None and p.dim() > 1 for p in learned):
                return "", "is added to a learned offset"
        if kind == "Mul" and self._leaf(node) is None and any(self._leaf(n) is None for n in others):
            return "", "is multiplied with another path"
        if concatenated and kind in _MIXING:
            return "", "is mixed with the channels it is concatenated with"
        return "", ""

    def _leaf(self, node: Node) -> nn.Parameter | None:
        """The parameter that alone is behind ``node``, through views; None if data is."""
        while not hasattr(node, "variable"):
            before = [n for n, _ in node.next_functions if n is not None]
            if len(before) != 1:
                return None
            node = before[0]
        return node.variable if id(node.variable) in self._own else None


def _kind(node: Node) -> str:
    """The function of a node: "Gelu" for GeluBackward0."""
    return str(node.name()).rpartition("::")[2].partition("Backward")[0]


def _is_instance_norm(node: Node, consumers: Sequence[Node]) -> bool:
    """InstanceNorm runs as a BatchNorm of one sample with a channel for each pair of sample and channel."""
    return node._input_metadata[0].shape[0] == 1 and [_kind(n) for n in consumers] == ["View"]


def _is_division(node: Node) -> bool:
    divisor = [before for before, _ in node.next_functions[1:] if before is not None]
    return _kind(node) in ("Rsqrt", "Reciprocal", "Pow") or (_kind(node) == "Div" and bool(divisor))


def _position(node: Node, consumer: Node) -> int:
    return next(i for i, (n, _) in enumerate(consumer.next_functions) if n is node)
