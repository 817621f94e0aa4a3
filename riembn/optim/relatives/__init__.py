"""What others have made of the same idea: methods that keep, bound or ignore the length of a weight row."""

from .adam_srt import AdamSRT as AdamSRT
from .adamp import SGDP as SGDP
from .adamp import AdamP as AdamP
from .cayley import CayleySGD as CayleySGD
from .hyperball import AdamH as AdamH
from .hyperball import HyperballSGD as HyperballSGD
from .lars import LARS as LARS
from .muon import Muon as Muon
from .muon import MuonRows as MuonRows
from .nero import Nero as Nero
from .oblique import ObliqueAdam as ObliqueAdam
from .oblique import ObliqueSGD as ObliqueSGD
from .pbwn import PBWN as PBWN
from .radial_brake import RadialBrakeSGD as RadialBrakeSGD
from .rotational import RotationalAdamW as RotationalAdamW
from .rotational import RotationalSGD as RotationalSGD
