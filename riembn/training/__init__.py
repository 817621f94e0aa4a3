"""How a run is computed: one network and optimizer, epoch by epoch, and many runs side by side."""

from .sweep import SweepFailed as SweepFailed
from .sweep import sweep as sweep
from .train import RunLocked as RunLocked
from .train import train as train
