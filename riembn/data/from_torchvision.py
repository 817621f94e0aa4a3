"""How is torchvision imported where its compiled part does not fit the installed torch?"""

from __future__ import annotations

import sys
from types import ModuleType

import torch

_keep_alive: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """The torchvision package; only what needs no compiled operator (data sets, models) is sure to work.

    Raises:
        ImportError: If torchvision is not installed.
    """
    try:
        import torchvision
    except ImportError as error:
        if error.name != "torchvision":
            raise
        raise ImportError('torchvision is missing; run: pip install "riembn[experiment]"') from error
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        # A torchvision built for CUDA cannot load its operators beside a CPU-only torch. It says nothing of
        # that, but goes on to register shape rules for two operators that then do not exist. Declaring them
        # is enough to let the Python part in; calling them still fails, as it should.
        for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[module]  # half imported
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _keep_alive.append(library)  # its declarations end with it
        import torchvision
    return torchvision
