"""The optimizers: float64 reference, SGD-G, Adam-G, PSI-SGD, relatives, and one object over two parts of a network."""

from . import relatives as relatives
from .adam_g import AdamG as AdamG
from .combined import Combined as Combined
from .orthogonality import orthogonality as orthogonality
from .orthogonality import orthogonality_grad as orthogonality_grad
from .psi_sgd import PSISGD as PSISGD
from .sgd_g import SGDG as SGDG
