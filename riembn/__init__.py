"""Train batch-normalized networks on the sphere their weights live on."""

from typing import TYPE_CHECKING

from . import data as data
from . import geometry as geometry
from . import models as models
from . import optim as optim
from .build import add_parameters as add_parameters
from .build import build_optimizer as build_optimizer
from .data import datasets as datasets
from .invariance import Split as Split
from .invariance import split as split
from .kernels import paths as paths
from .methods import Method as Method
from .methods import methods as methods
from .models import networks as networks
from .optim import PSISGD as PSISGD
from .optim import SGDG as SGDG
from .optim import AdamG as AdamG
from .optim import Combined as Combined

if TYPE_CHECKING:
    from . import evidence as evidence
    from .evidence import Study as Study
    from .experiment import Record as Record
    from .experiment import RunConfig as RunConfig
    from .experiment import Store as Store
    from .experiment import grid as grid  # type: ignore[no-redef]
    from .experiment import preset as preset
    from .training import sweep as sweep  # type: ignore[no-redef]
    from .training import train as train  # type: ignore[no-redef]

__version__ = "0.1.0"

_LATER = {
    **dict.fromkeys(("Record", "RunConfig", "Store", "grid", "preset", "experiment"), "experiment"),
    **dict.fromkeys(("sweep", "train", "training"), "training"),
    **dict.fromkeys(("Study", "evidence"), "evidence"),
}


def __getattr__(name: str) -> object:
    """What only experiments need is imported when it is asked for: an import for an optimizer stays short."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f".{_LATER[name]}", __name__)
    return module if name == _LATER[name] else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
