"""What a run starts from: its images, its network, and its optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from .. import data, models
from ..build import build_optimizer
from ..data import Dataset
from ..experiment.config import RunConfig
from ..geometry import scale_rows, weights_of
from ..invariance import Split
from ..methods import methods
from .batch_order import balanced_subset, seed_of

CLEAN_SIZE = 2000  # training images on which the clean loss is taken


@dataclass(frozen=True)
class Images:
    """The images of a run, and how its pixels are brought to the network's scale.

    Attributes:
        train: What is trained on.
        clean: A part of ``train``, balanced over the classes, on which the loss is taken without augmentation.
        validation: Held out of the training set; None without ``holdout``.
        test: The test set; None where there is a validation set, so that nothing is tuned on it.
        mean: Of each channel.
        std: Of each channel.
    """

    train: Dataset
    clean: Dataset
    validation: Dataset | None
    test: Dataset | None
    mean: Tensor
    std: Tensor

    def scaled(self, images: Tensor) -> Tensor:
        """The images as the network takes them."""
        return data.normalize(images, self.mean, self.std).contiguous(memory_format=torch.channels_last)


def images_of(config: RunConfig, root: str | Path | None, device: torch.device) -> Images:
    """The images of a configuration, on a device.

    The training images are the first of an order that is the same for every seed, the held-out ones those that
    follow: a run with a validation set trains on the same images as one without, if ``train_size`` is given.

    Raises:
        ValueError: If there are not enough of them.
    """
    whole, test = data.load(config.dataset, root)
    if data.content_digest(config.dataset) not in (None, config.code.get("dataset")):
        raise ValueError(f"train: {config.dataset} has changed since its configuration was made; make that anew.")
    size = len(whole) - config.holdout if config.train_size is None else config.train_size
    if size + config.holdout > len(whole) or size < config.batch_size:
        raise ValueError(
            f"train: batch_size={config.batch_size}, train_size={config.train_size}, holdout={config.holdout} do not "
            f"fit the {len(whole)} training images of {config.dataset}; give smaller ones."
        )
    train, validation = whole, None
    if config.train_size is not None or config.holdout:
        order = balanced_subset(whole.labels, size + config.holdout)
        train = whole.subset(order[:size])
        validation = whole.subset(order[size:]) if config.holdout else None
    clean = train
    if size > CLEAN_SIZE:
        clean = train.subset(balanced_subset(train.labels, CLEAN_SIZE))
    train = train.to(device)
    if config.pixels == "standardize":
        mean, std = data.channel_stats(train.images)
    else:
        channels = train.images.shape[1]
        mean, std = torch.zeros(channels, device=device), torch.ones(channels, device=device)
    return Images(
        train=train,
        clean=clean.to(device),
        validation=validation.to(device) if validation else None,
        test=None if validation else test.to(device),
        mean=mean,
        std=std,
    )


def network_of(config: RunConfig, images: Images, device: torch.device) -> nn.Module:
    """The network with fresh weights."""
    model = models.build(
        config.network,
        num_classes=len(images.train.classes),
        in_channels=images.train.images.shape[1],
        width=config.width,
        dropout=config.dropout,
    )
    model = models.channels_last(model).to(device)
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters()):
        with torch.no_grad():  # layers of a fork that learn their size from an image
            model.eval()(images.scaled(images.train.images[:2]))
        model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1 - config.bn_decay
    return model


@torch.no_grad()
def perturb(model: nn.Module, found: Split, config: RunConfig) -> None:
    """Start from other weights: of other lengths (``row_scale``), or a little off (``start_noise``)."""
    random = torch.Generator().manual_seed(seed_of("start", config.seed))
    if config.row_scale:
        for tensors, layout in weights_of(found.groups()):
            rows = layout.row_count(p := tensors[0])
            powers = torch.randint(-config.row_scale, config.row_scale + 1, (rows,), generator=random)
            scale_rows(tensors, layout, torch.ldexp(torch.ones_like(powers, dtype=p.dtype), powers).to(p.device))
    if config.start_noise:
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=random).to(p.device, p.dtype)
            p.mul_(1 + config.start_noise * noise)


def optimizer_of(config: RunConfig, model: nn.Module, found: Split) -> Optimizer:
    """The optimizer that the configuration says, by `riembn.build_optimizer`."""
    how = methods[config.method]
    settings: dict[str, Any] = {"lr": config.lr, **config.options}
    if "beta2" in how.fields:
        settings["betas"] = (config.momentum, config.beta2)
    elif "momentum" in how.fields:
        settings["momentum"] = config.momentum
    for name in ("grad_clip", "alpha", "weight_decay"):
        if name in how.fields:
            settings[name] = getattr(config, name)
    if "nesterov" in how.fields:
        settings["nesterov"] = config.nesterov and config.momentum > 0
    if how.kind == "rows":
        rest_options = dict(config.rest_options)
        if config.rest == "sgd":
            settings["rest_momentum"] = config.rest_momentum
            rest_options["nesterov"] = config.nesterov and bool(config.rest_momentum)
        settings |= {
            "rest": config.rest,
            "rest_lr": config.rest_lr,
            "rest_weight_decay": config.weight_decay,
            "rest_options": rest_options,
        }
    optimizer = build_optimizer(model, found, config.method, **settings)
    if config.decay_on != "all" or config.lengths == "replayed":
        _decay_on_parts(optimizer, found, config)
    return optimizer


def _decay_on_parts(optimizer: Optimizer, found: Split, config: RunConfig) -> None:
    """Let the decay of one group of all parameters act on the invariant ones, or on the others, only."""
    (group,) = optimizer.param_groups
    invariant = {id(p) for g in found.groups() for p in g["params"]}
    parts = [p for p in group["params"] if id(p) in invariant], [p for p in group["params"] if id(p) not in invariant]
    decays = config.decay_on != "rest" and config.lengths != "replayed", config.decay_on != "invariant"
    optimizer.param_groups.clear()
    for params, decays_here in zip(parts, decays, strict=True):
        optimizer.add_param_group({**group, "params": params, "weight_decay": group["weight_decay"] * decays_here})
