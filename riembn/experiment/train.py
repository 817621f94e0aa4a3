"""How is a network trained, from a configuration to its record?

Everything random is a function of the seed and the epoch, and nothing else: a run that was interrupted goes
on from its last checkpoint as if nothing had happened, on a CPU to the last bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import data, models
from ..build import build_optimizer
from ..invariance import split
from ..kernels.build import library
from .config import METHODS, RunConfig
from .environment import environment
from .measure import Probe, probed_steps
from .record import COLUMNS, Record
from .store import Store
from .stream import balanced_subset, epoch_batches, seed_of, steps_before

__all__ = ["RunLocked", "train"]

EVALUATION_BATCH = 500
EXAMPLE_SIZE = 64  # images on which invariance is measured
PADDING = 4


class RunLocked(RuntimeError):
    """Another process is training this run in this store."""


def train(
    config: RunConfig,
    *,
    store: Store | str | Path | None = None,
    resume: bool = True,
    device: torch.device | str | None = None,
    progress: bool | None = None,
    data_root: str | Path | None = None,
) -> Record:
    """Train one run, or read its record if it is there.

    Args:
        config: What to run.
        store: Where the record is kept, and a checkpoint after each epoch; None keeps nothing.
        resume: Use a record or checkpoints that are there; False trains anew and replaces them.
        device: Where to compute; None takes the GPU if there is one.
        progress: Show a progress bar; None shows it on a terminal only.
        data_root: Folder of the data sets, as in `riembn.data.load`.

    Returns:
        The run's record; also of a run whose loss was not finite, which stops there, as ``diverged``.

    Raises:
        RunLocked: If another process is training this run in this store.
        ValueError, FileNotFoundError: If data set and configuration do not fit, or the data is not there.
    """
    if store is None:
        return _Run(config, device, data_root).to_record(None, resume=resume, progress=progress)
    store = store if isinstance(store, Store) else Store(store)
    if resume and (record := store.get(config)) is not None:
        return record
    from filelock import Timeout

    try:
        with store.lock(config).acquire(timeout=0):
            # It may have been finished between the look above and the lock.
            if resume and (record := store.get(config)) is not None:
                return record
            run = _Run(config, device, data_root)
            record = run.to_record(store, resume=resume, progress=progress)
            store.put(record)
            store.checkpoints(config).keep_last()
            return record
    except Timeout:
        raise RunLocked(
            f"train: another process trains {config.name} in {store.path}; wait, or choose another store."
        ) from None


class _Run:
    """Data, network, optimizer and probe of one configuration, and the loop over them."""

    def __init__(
        self, config: RunConfig, device: torch.device | str | None, data_root: str | Path | None
    ) -> None:
        self.config = config
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.environment = environment(self.device)  # now: the checkout can change while a run lasts
        train_set, test_set = data.load(config.dataset, data_root)
        if config.train_size is not None:
            train_set = train_set.subset(balanced_subset(train_set.labels, config.train_size))
        if config.batch_size > len(train_set):
            raise ValueError(
                f"train: batch_size={config.batch_size} exceeds the {len(train_set)} images of "
                f"{config.dataset}; give a smaller one."
            )
        self.train_set, self.test_set = train_set.to(self.device), test_set.to(self.device)
        if config.pixels == "standardize":
            self.mean, self.std = data.channel_stats(self.train_set.images)
        else:
            channels = self.train_set.images.shape[1]
            self.mean, self.std = torch.zeros(channels), torch.ones(channels)
        with self._own_randomness("weights"):
            self._build()

    def _build(self) -> None:
        config = self.config
        self.model = models.build(
            config.network,
            num_classes=len(self.train_set.classes),
            in_channels=self.train_set.images.shape[1],
            width=config.width,
            dropout=config.dropout,
        ).to(self.device)
        # Half as fast again on a CPU; the overload is missing in torch's stubs.
        self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 1 - config.bn_decay
        example = self._input(self.train_set.images[:EXAMPLE_SIZE])
        groups = split(self.model, example, rule=config.rule).groups()
        self.probe = Probe(groups, grad_clip=config.grad_clip, alpha=config.alpha)
        self.optimizer = build_optimizer(
            self.model, example, config.method, rule=config.rule, **_settings(config)
        )
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        if config.method != "sgd" and self.device.type == "cpu":
            # Where there is no C compiler the step is another one, whose last bits differ.
            self.environment["compiled_step"] = library() is not None

    def to_record(self, store: Store | None, *, resume: bool, progress: bool | None) -> Record:
        """Train from the last checkpoint, or from the start, to the end."""
        from tqdm import tqdm

        config, size = self.config, len(self.train_set)
        checkpoints = store.checkpoints(config) if store else None
        columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        first, spent, bad_step = 0, 0.0, None
        if checkpoints and not resume:
            checkpoints.clear()
        elif checkpoints and (saved := checkpoints.newest(self.device)):
            first, spent, columns = saved["epoch"], saved["wall_seconds"], saved["columns"]
            self.model.load_state_dict(saved["model"])
            if first < config.epochs:
                self.optimizer.load_state_dict(saved["optimizer"])
        started = time.monotonic()
        bar = tqdm(
            total=steps_before(config.epochs, size, config.batch_size),
            initial=steps_before(first, size, config.batch_size),
            desc=config.name,
            unit="step",
            disable=None if progress is None else not progress,
        )
        with bar:
            for epoch in range(first, config.epochs):
                row, bad_step = self._epoch(epoch, bar)
                if bad_step is not None:
                    break
                for name in COLUMNS:
                    columns[name].append(_kept(row[name]))
                bar.set_postfix(epoch=epoch + 1, train=row["train_error"], test=row["test_error"])
                if checkpoints:
                    last = epoch + 1 == config.epochs
                    state = {
                        "model": self.model.state_dict(),
                        # A finished run is kept for its weights alone.
                        "optimizer": None if last else self.optimizer.state_dict(),
                        "columns": columns,
                        "wall_seconds": spent + time.monotonic() - started,
                    }
                    checkpoints.save(epoch + 1, state)
        wall = round(spent + time.monotonic() - started, 3)
        return Record(
            config=config,
            status="finished" if bad_step is None else "diverged",
            diverged_step=bad_step,
            columns=columns,
            environment={**self.environment, "wall_seconds": wall},
        )

    def _epoch(self, epoch: int, bar: Any) -> tuple[dict[str, Any], int | None]:
        """Train and evaluate one epoch: its row of the record, and the step whose loss was not finite."""
        config = self.config
        factor = config.drop_factor ** sum(drop <= epoch for drop in config.drops)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        lr = config.lr * factor
        first = steps_before(epoch, len(self.train_set), config.batch_size)
        order = epoch_batches(epoch, size=len(self.train_set), batch_size=config.batch_size, seed=config.seed)
        order = order.to(self.device)
        crops = torch.Generator(self.device).manual_seed(seed_of("crops", config.seed, epoch))
        probed = probed_steps(len(order))
        # Sums and the first bad step stay on the device: asking for them would wait for it at every step.
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        wrong = torch.zeros((), dtype=torch.int64, device=self.device)
        bad = torch.full((), -1, dtype=torch.int64, device=self.device)
        self.model.train()
        started = time.monotonic()
        with self._own_randomness("dropout", epoch):
            for number, indices in enumerate(order):
                images, labels = self.train_set.images[indices], self.train_set.labels[indices]
                if config.augment:
                    images = data.reflect_crop_flip(images, padding=PADDING, generator=crops)
                scores = self.model(self._input(images))
                loss = functional.cross_entropy(scores, labels)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                with torch.no_grad():
                    loss_sum += loss.double()
                    wrong += (scores.argmax(1) != labels).sum()
                    bad = torch.where((bad < 0) & ~loss.isfinite(), first + number, bad)
                if number in probed:
                    if int(bad) >= 0:
                        break
                    self.probe.before_step()
                    self.optimizer.step()
                    self.probe.after_step()
                else:
                    self.optimizer.step()
                bar.update()
        if int(bad) >= 0:
            return {}, int(bad)
        seconds = time.monotonic() - started
        test_loss, test_error = self._evaluate()
        return {
            "epoch": epoch + 1,
            "step": first + len(order),
            "current_lr": lr,
            "train_loss": float(loss_sum) / len(order),
            "train_error": 100 * int(wrong) / order.numel(),
            "test_loss": test_loss,
            "test_error": test_error,
            **self.probe.motion(),
            **self.probe.state(lr, unit_free=config.method != "sgd"),
            "seconds": seconds,
            "images_per_second": order.numel() / seconds,
        }, None

    def _input(self, images: Tensor) -> Tensor:
        return data.normalize(images, self.mean, self.std).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def _evaluate(self) -> tuple[float, float]:
        """Mean cross-entropy and percent misclassified on the whole test set."""
        self.model.eval()
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        wrong = torch.zeros((), dtype=torch.int64, device=self.device)
        images, labels = self.test_set.images, self.test_set.labels
        for some, wanted in zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True):
            scores = self.model(self._input(some))
            loss_sum += functional.cross_entropy(scores, wanted, reduction="sum").double()
            wrong += (scores.argmax(1) != wanted).sum()
        return float(loss_sum) / len(labels), 100 * int(wrong) / len(labels)

    @contextmanager
    def _own_randomness(self, purpose: str, epoch: int = 0) -> Iterator[None]:
        """Torch's random numbers are those of this run, purpose and epoch; the caller's come back after."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed_of(purpose, self.config.seed, epoch))
            yield


def _settings(config: RunConfig) -> Mapping[str, Any]:
    """The configuration in the words of `riembn.build_optimizer`."""
    if config.method == "sgd":
        momentum = config.momentum
        return {
            "lr": config.lr,
            "momentum": momentum,
            "nesterov": momentum > 0,
            "weight_decay": config.weight_decay,
        }
    settings: dict[str, Any] = {
        "lr": config.lr,
        "rest_lr": config.rest_lr,
        "rest_momentum": config.rest_momentum,
        "rest_weight_decay": config.weight_decay,
    }
    if config.method == "adam-g":
        settings["betas"] = (config.momentum, config.beta2)
    else:
        settings["momentum"] = config.momentum
    if "grad_clip" in METHODS[config.method]:
        settings |= {"grad_clip": config.grad_clip, "alpha": config.alpha}
    return settings


def _kept(value: float | int | None) -> float | int | None:
    """A number as a record keeps it: seven significant digits; None if it is not finite."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value
