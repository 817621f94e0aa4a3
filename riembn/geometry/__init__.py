"""Sphere and Grassmann operators, and the rows of a weight tensor they act on."""

from . import grassmann as grassmann
from . import sphere as sphere
from .rows import from_joint_rows as from_joint_rows
from .rows import from_rows as from_rows
from .rows import row_count as row_count
from .rows import row_view as row_view
from .rows import to_joint_rows as to_joint_rows
from .rows import to_rows as to_rows
