"""What a run is: its configuration, the presets of the papers, its record, and the store that keeps it."""

from .config import RunConfig as RunConfig
from .grid import grid as grid
from .presets import method_settings as method_settings
from .presets import preset as preset
from .record import Record as Record
from .store import Store as Store
