"""From a configuration to its record: presets, training, the store, sweeps and their statistics."""

from . import stats as stats
from .config import RunConfig as RunConfig
from .presets import preset as preset
from .record import Record as Record
from .store import Store as Store
from .sweep import SweepFailed as SweepFailed
from .sweep import grid as grid
from .sweep import sweep as sweep
from .train import RunLocked as RunLocked
from .train import train as train
