"""Sphere and Grassmann operators, and the rows of a weight tensor they act on."""

from . import grassmann as grassmann
from . import sphere as sphere
from .rows import Layout as Layout
from .rows import from_rows as from_rows
from .rows import scale_rows as scale_rows
from .rows import to_rows as to_rows
from .rows import weights_of as weights_of
