"""How far is the gradient of each weight row from being orthogonal to it?"""

import copy

import torch
from torch import Tensor, nn

from riembn.geometry.rows import to_rows


def radial_parts(model: nn.Module, example: Tensor, groups: list[dict]) -> list[Tensor]:
    """⟨w, ∂L/∂w⟩ over |w| |∂L/∂w| of every weight row, computed with nothing of the package but `to_rows`.

    Where a row hardly moves the output, |w| |∂L/∂w| is rounding: one part in 10,000 of the largest stands for it.
    A bias that belongs to its weight adds its own products to those of the rows.
    """
    twin = copy.deepcopy(model).double().train()
    for module in twin.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-20  # torch asks for a positive one
        if "drop" in type(module).__name__.lower():
            module.eval()
    torch.manual_seed(2)
    for parameter in twin.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    output = twin(example.double() if example.is_floating_point() else example)
    (output * torch.randn_like(output)).sum().backward()
    twins = dict(zip(map(id, model.parameters()), twin.parameters(), strict=True))
    inner, sizes = [], []
    for group in groups:
        layout = {key: value for key, value in group.items() if key not in ("params", "joint")}
        step = 2 if group.get("joint") else 1
        for i in range(0, len(group["params"]), step):
            weight, *bias = (twins[id(parameter)] for parameter in group["params"][i : i + step])
            w, g = (to_rows(t.contiguous(), **layout) for t in (weight, weight.grad))
            for b in bias:
                w, g = (torch.cat([r, t.view(len(r), -1)], 1) for r, t in ((w, b), (g, b.grad)))
            inner.append((w * g).sum(1).detach())
            sizes.append((w.norm(dim=1) * g.norm(dim=1)).detach())
    least = 1e-4 * max(float(size.max()) for size in sizes) if sizes else 0.0
    return [part / size.clamp_min(least) for part, size in zip(inner, sizes, strict=True)]
