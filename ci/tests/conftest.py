"""Hypothesis runs the same examples on every machine; Triton, where there is no GPU, interprets its kernels."""

import os

import torch
from hypothesis import settings

settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci")

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is first imported
