"""How is a network trained, step by step and epoch by epoch?

Everything random is a function of the seed and the epoch, and nothing else: a run that was interrupted goes
on from its last checkpoint as if nothing had happened, on a CPU to the last bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import data, models
from ..experiment.checkpoint import Checkpoints
from ..experiment.config import METHODS, RunConfig
from ..experiment.record import COLUMNS, Record, rounded
from ..invariance import split
from ..kernels.c_library import library
from ..methods import build_optimizer
from .batch_norm import normalize_across
from .batch_order import balanced_subset, epoch_batches, seed_of, steps_before
from .devices import Devices, gathered, load_model, load_optimizer
from .freed_memory import keep_freed_memory
from .graphed import GraphedStep
from .machine import environment, peak_memory
from .motion import Probe, probed_steps
from .sums import Sums
from .tensorboard import curves

__all__ = ["Run"]

EVALUATION_BATCH = 500
EXAMPLE_SIZE = 64  # images on which invariance is measured
PADDING = 4


class Run:
    """Data, network, optimizer and probe of one configuration, and the loop over them."""

    def __init__(
        self,
        config: RunConfig,
        device: torch.device | str | None,
        data_root: str | Path | None,
        *,
        compile: bool = False,
        cuda_graphs: bool = False,
        devices: Devices | None = None,
    ) -> None:
        self.config = config
        default = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.devices = devices or Devices(torch.device(default))
        self.device = self.devices.device
        if self.device.type == "cpu":
            keep_freed_memory()
        self.environment = environment(self.device)  # now: the checkout can change while a run lasts
        if self.devices.count > 1:
            self._check_devices(compile or cuda_graphs)
            self.environment |= {"devices": self.devices.count, "sharded": self.devices.shard}
        if cuda_graphs:
            self._check_graphs()
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
            self.mean = torch.zeros(channels, device=self.device)
            self.std = torch.ones(channels, device=self.device)
        self.crops = torch.Generator(self.device)
        with self._own_randomness("weights"):
            self._build()
        self.forward: Any = self.wrapped
        if compile:
            # Eager's random numbers: else dropout would drop other values than without compiling.
            self.forward = torch.compile(self.model, options={"fallback_random": True})
            self.environment["compiled_network"] = True
        self.graphed_step = GraphedStep(self.optimizer) if cuda_graphs else None
        if cuda_graphs:
            self.environment["cuda_graphs"] = True

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
        found = split(self.model, example, rule=config.rule)
        normalize_across(self.model, self.devices, config.accumulate)
        self.wrapped = self.devices.wrap(self.model)
        found = found.rebind(self.model)
        self.probe = Probe(found.groups(), grad_clip=config.grad_clip, alpha=config.alpha)
        self.optimizer = build_optimizer(self.model, found, config.method, **_settings(config))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "float16")
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        if config.method != "sgd" and self.device.type == "cpu":
            # Where there is no C compiler the step is another one, whose last bits differ.
            self.environment["compiled_step"] = library() is not None

    def _check_devices(self, compiled: bool) -> None:
        config, devices = self.config, self.devices
        devices.check(batch_size=config.batch_size, parts=config.accumulate, dropout=config.dropout)
        if compiled:
            raise ValueError(
                f"train: compile and cuda_graphs are for one device, not {devices.count}; leave them out."
            )
        if config.precision == "float16":
            raise ValueError(
                f"train: {devices.count} devices would scale precision='float16' otherwise than one, and skip other "
                "steps; give 'bfloat16'."
            )

    def _check_graphs(self) -> None:
        if self.device.type != "cuda":
            raise ValueError(f"train: cuda_graphs=True needs a CUDA device, not {self.device}; leave it out.")
        if self.config.precision == "float16":
            raise ValueError(
                "train: cuda_graphs=True does not go with precision='float16', whose scaler decides at each "
                "step whether to take it; leave it out, or give 'bfloat16'."
            )

    def to_record(
        self,
        checkpoints: Checkpoints | None,
        *,
        resume: bool,
        minutes: float | None,
        progress: bool | None,
        tensorboard: str | Path | None,
    ) -> Record:
        """Train from the last checkpoint, or from the start, to the end."""
        from tqdm import tqdm

        config, size, devices = self.config, len(self.train_set), self.devices
        columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        first, part, spent, bad_step = 0, None, 0.0, None
        before: dict[str, Any] | None = None
        if checkpoints and not resume:
            if devices.first:
                checkpoints.clear()
        elif checkpoints and (saved := devices.from_first(checkpoints.newest)):
            first, part, spent = saved["epoch"], saved.get("part"), saved["wall_seconds"]
            columns = {name: saved["columns"].get(name, [None] * first) for name in COLUMNS}
            load_model(self.model, saved["model"])
            if first < config.epochs:
                load_optimizer(self.optimizer, saved["optimizer"])
                self.scaler.load_state_dict(saved.get("scaler", {}))
            before = saved.get("environment")
            del saved  # a second copy of all weights, else, for as long as the run lasts
        taken = steps_before(first, size, config.batch_size) + (part["steps"] if part else 0)
        self._note_environment(before, taken)
        started = last_kept = time.monotonic()  # not time.time, which a clock that is set moves

        def keep(epoch: int, sums: Sums | None = None) -> None:
            """Save a checkpoint if one is due: after so many epochs, or ``sums.steps`` into the next."""
            nonlocal last_kept
            over, now = epoch == config.epochs, time.monotonic()
            due = sums is None or over
            if minutes is not None:
                due = devices.from_first(lambda: over or now - last_kept >= 60 * minutes)
            if checkpoints is None or not due:
                return
            state = {
                "model": gathered(self.model.state_dict()),
                # A finished run is kept for its weights alone.
                "optimizer": None if over else gathered(self.optimizer.state_dict()),
                "scaler": self.scaler.state_dict(),
                "columns": columns,
                "part": None if sums is None else self._part(sums),
                "wall_seconds": spent + now - started,
                "environment": self.environment,
            }
            steps = sums.steps if sums else 0
            devices.from_first(lambda: checkpoints.save(epoch, state, steps=steps))
            last_kept = time.monotonic()

        bar = tqdm(
            total=steps_before(config.epochs, size, config.batch_size),
            initial=taken,
            desc=config.name,
            unit="step",
            disable=(None if progress is None else not progress) if devices.first else True,
        )
        with bar, curves(tensorboard if devices.first else None, config.name, first) as draw:
            for epoch in range(first, config.epochs):
                row, bad_step = self._epoch(epoch, bar, keep, part)
                if bad_step is not None:
                    break
                part = None
                for name in COLUMNS:
                    columns[name].append(rounded(row[name]))
                bar.set_postfix(epoch=epoch + 1, train=row["train_error"], test=row["test_error"])
                draw(row)
                keep(epoch + 1)
        wall = round(spent + time.monotonic() - started, 3)
        return Record(
            config=config,
            status="finished" if bad_step is None else "diverged",
            diverged_step=bad_step,
            columns=columns,
            environment={**self.environment, "wall_seconds": wall},
        )

    def _note_environment(self, before: dict[str, Any] | None, taken: int) -> None:
        """Keep where the steps so far were computed, if that was otherwise than here."""
        earlier = before.pop("earlier", []) if before else []
        if before and before != self.environment:
            earlier = [*earlier, {**before, "until_step": taken}]
        if earlier:
            self.environment["earlier"] = earlier

    def _epoch(
        self, epoch: int, bar: Any, keep: Callable[..., None], part: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], int | None]:
        """Train and evaluate one epoch: its row of the record, and the step whose loss was not finite."""
        config = self.config
        factor = config.drop_factor ** sum(drop <= epoch for drop in config.drops)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        lr = config.lr * factor
        first = steps_before(epoch, len(self.train_set), config.batch_size)
        order = epoch_batches(epoch, size=len(self.train_set), batch_size=config.batch_size, seed=config.seed)
        order = order.to(self.device)
        probed = probed_steps(len(order))
        self.crops.manual_seed(seed_of("crops", config.seed, epoch))
        sums = Sums()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.model.train()
        with self._own_randomness("dropout", epoch):
            if part:
                sums = self._go_on(part)
            started = time.monotonic() - sums.seconds
            for number, indices in enumerate(order[sums.steps :], start=sums.steps):
                images, labels = (
                    t.index_select(0, indices) for t in (self.train_set.images, self.train_set.labels)
                )
                if config.augment:
                    images = data.reflect_crop_flip(images, padding=PADDING, generator=self.crops)
                self._backward(images, labels, sums, first + number)
                if number in probed:
                    if sums.over(self.devices).bad >= 0:
                        break
                    self.scaler.unscale_(self.optimizer)
                    self.probe.before_step()
                    self._step()
                    self.probe.after_step()
                else:
                    self._step()
                bar.update()
                sums.steps, sums.seconds = number + 1, time.monotonic() - started
                if sums.steps < len(order):
                    keep(epoch, sums)
                    started = time.monotonic() - sums.seconds
        sums = sums.over(self.devices)
        if sums.bad >= 0:
            return {}, sums.bad
        seconds = time.monotonic() - started
        memory = peak_memory(self.device)
        test_loss, test_error = self._evaluate()
        return {
            "epoch": epoch + 1,
            "step": first + len(order),
            "current_lr": lr,
            "train_loss": sums.loss / len(order),
            "train_error": 100 * sums.wrong / order.numel(),
            "test_loss": test_loss,
            "test_error": test_error,
            **self.probe.motion(),
            **self.probe.state(lr, unit_free=config.method != "sgd"),
            "seconds": seconds,
            "images_per_second": order.numel() / seconds,
            "peak_memory": memory,
        }, None

    def _backward(self, images: Tensor, labels: Tensor, sums: Sums, step: int) -> None:
        """The gradient of the batch's mean loss, in pieces: this device's of ``accumulate`` parts."""
        config, devices = self.config, self.devices
        own, pieces = devices.pieces(config.accumulate)
        self.optimizer.zero_grad(set_to_none=self.graphed_step is None)
        for number, (some, wanted) in enumerate(zip(images.chunk(pieces), labels.chunk(pieces), strict=True)):
            if number not in own:
                continue
            self._prepare_part(number - own.start, len(own))
            if config.dropout and pieces > 1:  # the same values on whichever device a part is computed
                torch.manual_seed(seed_of("dropout", config.seed, step, number))
            with devices.summing(self.wrapped, number == own[-1]):
                with self._precision():
                    scores = self.forward(self._input(some))
                loss = functional.cross_entropy(scores.float(), wanted) / pieces
                self.scaler.scale(loss * devices.count).backward()  # which takes the mean over devices
            sums.add(loss.detach(), (scores.argmax(1) != wanted).sum(), step)
        if devices.count > 1:
            devices.average(self.model.buffers())

    def _prepare_part(self, part: int, parts: int) -> None:
        """Let each part of a batch move the running statistics alike, and all together by 1 - bn_decay."""
        if parts > 1:
            share = (1 - self.config.bn_decay) / parts
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.momentum = share / (1 - (parts - 1 - part) * share)

    def _step(self) -> None:
        if self.graphed_step:
            self.graphed_step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def _precision(self) -> AbstractContextManager:
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.config.precision))

    def _part(self, sums: Sums) -> dict[str, Any]:
        """All that the rest of an epoch depends on beyond weights and optimizer."""
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {
            **sums.over(self.devices).state(),
            "seen": self.probe.seen,
            "device": self.device.type,
            "crops": self.crops.get_state(),
            "random": torch.get_rng_state(),
            "cuda_random": cuda,
        }

    def _go_on(self, part: Mapping[str, Any]) -> Sums:
        """The inverse of `_part`.

        Raises:
            ValueError: If the rest of the epoch would draw its random numbers on another kind of device.
        """
        before = part.get("device", "cpu" if part["cuda_random"] is None else "cuda")
        if before != self.device.type:
            raise ValueError(
                f"train: {self.config.name} was interrupted within an epoch on device={before!r}, whose random "
                f"numbers {self.device.type!r} does not draw; go on there, or train anew with resume=False (--fresh)."
            )
        self.probe.seen = [{name: t.to(self.device) for name, t in step.items()} for step in part["seen"]]
        self.crops.set_state(part["crops"])
        torch.set_rng_state(part["random"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(part["cuda_random"], self.device)
        return Sums.of(part, counted=self.devices.first)  # what all had come to goes on in one of them

    def _input(self, images: Tensor) -> Tensor:
        return data.normalize(images, self.mean, self.std).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def _evaluate(self) -> tuple[float, float]:
        """Mean cross-entropy and percent misclassified on the whole test set."""
        self.model.eval()
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        wrong = torch.zeros((), dtype=torch.int64, device=self.device)
        images, labels = self.test_set.images, self.test_set.labels
        rank, count = self.devices.rank, self.devices.count
        for batch in zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True):
            some, wanted = (t.tensor_split(count)[rank] for t in batch)
            with self._precision():
                scores = self.model(self._input(some))
            loss_sum += functional.cross_entropy(scores.float(), wanted, reduction="sum").double()
            wrong += (scores.argmax(1) != wanted).sum()
        loss_sum, wrong = self.devices.total(loss_sum), self.devices.total(wrong)
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
