"""Training of one run, step by step and epoch by epoch.

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

from .. import data
from ..experiment.checkpoint import Checkpoints
from ..experiment.config import RunConfig
from ..experiment.record import COLUMNS, Record, rounded
from ..invariance import Split, split
from ..kernels.c_library import library
from .batch_norm import normalize_across
from .batch_order import epoch_batches, seed_of, steps_before
from .controls import Lengths
from .devices import Devices, gathered, load_model, load_optimizer
from .machine import environment, peak_memory
from .motion import Motion, probed_steps
from .schedule import rate_factor
from .setup import images_of, network_of, optimizer_of, perturb
from .sums import Sums
from .tensorboard import curves

EVALUATION_BATCH = 500
EXAMPLE_SIZE = 64  # images on which invariance is measured
PREDICTED = 1000  # test images of which a record keeps the predicted classes


class Run:
    """Images, network, optimizer and measurement of one configuration, and the loop over its epochs."""

    def __init__(
        self,
        config: RunConfig,
        device: torch.device | str,
        data_root: str | Path | None,
        *,
        compile: bool = False,
        devices: Devices | None = None,
    ) -> None:
        self.config = config
        self.devices = devices or Devices(torch.device(device))
        self.device = self.devices.device
        self.environment = environment(self.device)  # now: the checkout can change while a run lasts
        if self.devices.count > 1:
            self._check_devices(compile)
            self.environment |= {"devices": self.devices.count, "sharded": self.devices.shard}
        self.images = images_of(config, data_root, self.device)
        self.steps = steps_before(config.epochs, len(self.images.train), config.batch_size)
        self.crops = torch.Generator(self.device)
        with self._own_randomness("weights"):
            self._build()
        self.forward: Any = self.wrapped
        if compile:
            # Eager's random numbers: else dropout would drop other values than without compiling.
            self.forward = torch.compile(self.model, options={"fallback_random": True})
            self.environment["compiled_network"] = True
        self.lengths = None
        if config.lengths != "free":
            self.lengths = Lengths(config, self.found, lambda told: self._reference(data_root, told))

    def _build(self) -> None:
        config = self.config
        self.model = network_of(config, self.images, self.device)
        example = self.images.scaled(self.images.train.images[:EXAMPLE_SIZE])
        found = split(self.model, example, rule=config.rule)
        _check_controls(config, found)
        perturb(self.model, found, config)
        normalize_across(self.model, self.devices, config.accumulate)
        self.wrapped = self.devices.wrap(self.model)
        self.found = found.rebind(self.model)
        self.motion = Motion(self.found.groups(), grad_clip=config.grad_clip, alpha=config.alpha)
        self.optimizer = optimizer_of(config, self.model, self.found)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "float16")
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        if config.method != "sgd" and self.device.type == "cpu":
            # Where there is no C compiler the step is another one, whose last bits differ.
            self.environment["compiled_step"] = library() is not None

    def _reference(self, data_root: str | Path | None, told: Callable[[Tensor], None]) -> int | None:
        """Train the same run with free lengths, tell those of its rows after each step; the step it diverged at."""
        other = Run(self.config.replace(lengths="free"), self.device, data_root)
        rows = Lengths(other.config, other.found, lambda _: None)
        for epoch in range(self.config.epochs):
            _, bad_step = other._epoch(epoch, None, lambda *_: None, after_step=lambda: told(rows.now()))
            if bad_step is not None:
                return bad_step
        return None

    def _check_devices(self, compiled: bool) -> None:
        config, devices = self.config, self.devices
        devices.check(batch_size=config.batch_size, parts=config.accumulate, dropout=config.dropout)
        if compiled:
            raise ValueError(f"train: compile is for one device, not {devices.count}; leave it out.")
        if config.lengths != "free":
            raise ValueError(f"train: lengths={config.lengths!r} is for one device, not {devices.count}.")
        if config.precision == "float16":
            raise ValueError(
                f"train: {devices.count} devices would scale precision='float16' otherwise than one, and skip other "
                "steps; give 'bfloat16'."
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

        config, size, devices = self.config, len(self.images.train), self.devices
        columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        first, part, spent, bad_step = 0, None, 0.0, None
        before: dict[str, Any] | None = None
        if checkpoints and not resume:
            if devices.first:
                checkpoints.clear()
        elif checkpoints and (saved := devices.from_first(checkpoints.newest)):
            first, part, spent = saved["epoch"], saved["part"], saved["wall_seconds"]
            columns, before = saved["columns"], saved["environment"]
            load_model(self.model, saved["model"])
            if first < config.epochs:
                load_optimizer(self.optimizer, saved["optimizer"])
                self.scaler.load_state_dict(saved["scaler"])
                if self.lengths:
                    self.lengths.load(saved["lengths"])
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
                "lengths": self.lengths.state() if self.lengths else None,
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
            predictions=self._predictions() if bad_step is None else None,
        )

    def _note_environment(self, before: dict[str, Any] | None, taken: int) -> None:
        """Keep where the steps so far were computed, if that was otherwise than here."""
        earlier = before.pop("earlier", []) if before else []
        if before and before != self.environment:
            earlier = [*earlier, {**before, "until_step": taken}]
        if earlier:
            self.environment["earlier"] = earlier

    def _epoch(
        self,
        epoch: int,
        bar: Any,
        keep: Callable[..., None],
        part: Mapping[str, Any] | None = None,
        after_step: Callable[[], None] | None = None,
    ) -> tuple[dict[str, Any], int | None]:
        """Train and evaluate one epoch: its row of the record, and the step whose loss was not finite."""
        config, train = self.config, self.images.train
        first = steps_before(epoch, len(train), config.batch_size)
        order = epoch_batches(epoch, size=len(train), batch_size=config.batch_size, seed=config.seed)
        order = order.to(self.device)
        probed = probed_steps(len(order))
        self.crops.manual_seed(seed_of("crops", config.seed, epoch))
        sums = Sums()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.model.train()
        lr = self._set_rates(first, epoch)
        with self._own_randomness("dropout", epoch):
            if part:
                sums = self._go_on(part)
            started = time.monotonic() - sums.seconds
            for number, indices in enumerate(order[sums.steps :], start=sums.steps):
                lr = self._set_rates(first + number, epoch)
                images, labels = (t.index_select(0, indices) for t in (train.images, train.labels))
                if config.augment:
                    images = data.reflect_crop_flip(
                        images, padding=config.padding, flip=config.flip, generator=self.crops
                    )
                self._backward(images, labels, sums, first + number)
                if self.lengths and not self.lengths.before_step(first + number, epoch):
                    sums.end(first + number)
                    break
                if number in probed:
                    if sums.over(self.devices).bad >= 0:
                        break
                    self.scaler.unscale_(self.optimizer)
                    self.motion.before_step()
                    self._step()
                    self.motion.after_step()
                else:
                    self._step()
                if after_step:
                    after_step()
                if bar is not None:
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
        return {
            "epoch": epoch + 1,
            "step": first + len(order),
            "current_lr": lr,
            "train_loss": sums.loss / len(order),
            "train_error": 100 * sums.wrong / order.numel(),
            **({} if after_step else self._evaluated(epoch + 1)),
            **self.motion.motion(),
            **self.motion.state(lr, unit_free=config.method != "sgd"),
            "seconds": seconds,
            "images_per_second": order.numel() / seconds,
            "peak_memory": memory,
        }, None

    def _set_rates(self, step: int, epoch: int) -> float:
        """Set the rates of a step; returns that of the configuration's ``lr``."""
        factor = rate_factor(self.config, step, self.steps, epoch)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        return self.config.lr * factor

    def _evaluated(self, epochs: int) -> dict[str, float | None]:
        """Losses and errors after so many epochs; None where they are not asked for."""
        config, images = self.config, self.images
        due = not config.evaluate_at or epochs in (*config.evaluate_at, config.epochs)
        clean, _ = self._evaluate(images.clean)
        found: dict[str, float | None] = {"clean_loss": clean}
        for name, part in (("validation", images.validation), ("test", images.test)):
            loss, error = self._evaluate(part) if part and due else (None, None)
            found |= {f"{name}_loss": loss, f"{name}_error": error}
        return found

    def _backward(self, images: Tensor, labels: Tensor, sums: Sums, step: int) -> None:
        """The gradient of the batch's mean loss, in pieces: this device's of ``accumulate`` parts."""
        config, devices = self.config, self.devices
        own, pieces = devices.pieces(config.accumulate)
        self.optimizer.zero_grad()
        for number, (some, wanted) in enumerate(zip(images.chunk(pieces), labels.chunk(pieces), strict=True)):
            if number not in own:
                continue
            self._prepare_part(number - own.start, len(own))
            if config.dropout and pieces > 1:  # the same values on whichever device a part is computed
                torch.manual_seed(seed_of("dropout", config.seed, step, number))
            with devices.summing(self.wrapped, number == own[-1]):
                with self._precision():
                    scores = self.forward(self.images.scaled(some))
                loss = self._loss(scores, wanted, smoothing=config.label_smoothing) / pieces
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
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.lengths:
            self.lengths.after_step()

    def _loss(self, scores: Tensor, wanted: Tensor, *, smoothing: float = 0.0, reduction: str = "mean") -> Tensor:
        """The loss of a batch, its mean or its sum over images, in float32."""
        if self.config.loss == "cross-entropy":
            return functional.cross_entropy(
                scores.float(), wanted, label_smoothing=smoothing, reduction=reduction
            )
        target = functional.one_hot(wanted, scores.shape[1]).float()
        target = target * (1 - smoothing) + smoothing / scores.shape[1]
        each = (scores.float() - target).square().sum(1)
        return each.mean() if reduction == "mean" else each.sum()

    def _precision(self) -> AbstractContextManager:
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.config.precision))

    def _part(self, sums: Sums) -> dict[str, Any]:
        """All that the rest of an epoch depends on beyond weights and optimizer."""
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {
            **sums.over(self.devices).state(),
            "seen": self.motion.seen,
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
        if part["device"] != self.device.type:
            raise ValueError(
                f"train: {self.config.name} was interrupted within an epoch on device={part['device']!r}, whose random "
                f"numbers {self.device.type!r} does not draw; go on there, or train anew with resume=False (--fresh)."
            )
        self.motion.seen = [{name: t.to(self.device) for name, t in step.items()} for step in part["seen"]]
        self.crops.set_state(part["crops"])
        torch.set_rng_state(part["random"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(part["cuda_random"], self.device)
        return Sums.of(part, counted=self.devices.first)  # what all had come to goes on in one of them

    @torch.no_grad()
    def _evaluate(self, part: data.Dataset) -> tuple[float, float]:
        """Mean loss and percent misclassified on all images of a part."""
        self.model.eval()
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        wrong = torch.zeros((), dtype=torch.int64, device=self.device)
        rank, count = self.devices.rank, self.devices.count
        for batch in zip(part.images.split(EVALUATION_BATCH), part.labels.split(EVALUATION_BATCH), strict=True):
            some, wanted = (t.tensor_split(count)[rank] for t in batch)
            with self._precision():
                scores = self.model(self.images.scaled(some))
            loss_sum += self._loss(scores, wanted, reduction="sum").double()
            wrong += (scores.argmax(1) != wanted).sum()
        loss_sum, wrong = self.devices.total(loss_sum), self.devices.total(wrong)
        return float(loss_sum) / len(part), 100 * int(wrong) / len(part)

    @torch.no_grad()
    def _predictions(self) -> list[int] | None:
        """The classes given to the first test images; None where the test set is not looked at, or in parts."""
        if self.images.test is None or self.devices.count > 1:
            return None
        self.model.eval()
        with self._precision():
            batches = self.images.test.images[:PREDICTED].split(EVALUATION_BATCH)
            return torch.cat([self.model(self.images.scaled(some)).argmax(1) for some in batches]).tolist()

    @contextmanager
    def _own_randomness(self, purpose: str, epoch: int = 0) -> Iterator[None]:
        """Torch's random numbers are those of this run, purpose and epoch; the caller's come back after."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed_of(purpose, self.config.seed, epoch))
            yield


def _check_controls(config: RunConfig, found: Split) -> None:
    for name, neutral in (("lengths", "free"), ("decay_on", "all"), ("row_scale", 0)):
        if getattr(config, name) != neutral and not found.invariant:
            raise ValueError(
                f"train: {name}={getattr(config, name)!r} is about invariant weights, and {config.network} has none by "
                f"rule={config.rule!r}; leave it out, or choose another rule or network."
            )
