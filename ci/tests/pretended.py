"""Records that nobody trained, of every run that is asked for: values by method and rate, spread over seeds."""

from __future__ import annotations

import math

import numpy
import pandas

from riembn.evidence.readings import predicted_angle
from riembn.experiment import Record, RunConfig, Store
from riembn.experiment.record import COLUMNS


class Pretended(Store):
    """A store that has every run, and keeps in memory those that were asked for."""

    def __init__(self) -> None:
        super().__init__("nowhere")
        self.made: dict[str, Record] = {}

    def get(self, config: RunConfig) -> Record:
        return self.made.setdefault(config.digest(), ended(config))

    def frame(self, damaged: object = None) -> pandas.DataFrame:
        return pandas.concat([record.frame() for record in self.made.values()], ignore_index=True)


def ended(config: RunConfig) -> Record:
    """The record of a run; like a real one it has test errors only where it was asked to evaluate."""
    method = {"sgd": 1.0, "sgd-g": 0.0, "adam-g": 0.2, "psi-sgd": 0.3}.get(config.method, 0.6)
    off = abs(math.log2(config.lr / (0.05 if config.method == "adam-g" else 0.2)))
    if config.holdout:  # the best decay and the best rate of the rest
        off += abs(math.log(max(config.weight_decay, 1e-4) / (8e-3 if config.method == "sgd" else 5e-4)))
        off += abs(math.log((config.rest_lr or 0.01) / 0.01))
    noise = numpy.random.default_rng(int(config.digest(), 16)).normal()
    cost = 10 + method + 0.3 * off + 0.05 * noise
    cost += (config.grad_clip is None) * 0.5 * (config.method != "sgd") + (config.decay_on == "rest")
    angle = predicted_angle(vars(config)) if config.weight_decay else 0.01
    epochs = list(range(1, config.epochs + 1))
    read = [cost if epoch in (config.evaluate_at or epochs) else None for epoch in epochs]
    drops = [sum(drop < epoch for drop in config.drops) for epoch in epochs]
    slope = 0.1 * (1 - method + 0.1 * noise)
    columns = {name: [0.5] * config.epochs for name in COLUMNS} | {
        "epoch": epochs,
        "step": [(config.train_size or 60_000) // 128 * epoch for epoch in epochs],
        "current_lr": [config.lr * config.drop_factor**drop for drop in drops],
        "test_error": [None] * config.epochs if config.holdout else read,
        "validation_error": read if config.holdout else [None] * config.epochs,
        "clean_loss": [(cost - slope * max(epoch - 3, 0)) / 100 for epoch in epochs],
        "angle": [angle] * config.epochs,
        "angle_rms": [angle * (1 + 0.001 * config.seed)] * config.epochs,
    }
    far = 20 * (config.row_scale > 0) * (config.method == "sgd") + (config.start_noise > 0) * (5 + config.seed % 3)
    classes = None if config.holdout else [1] * far + [0] * (1000 - far)
    return Record(config=config, status="finished", columns=columns, predictions=classes)
