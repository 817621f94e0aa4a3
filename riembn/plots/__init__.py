"""What do the figures and tables of the book look like?

One palette, one way to draw an interval, one way onto a page; the only place that imports matplotlib.
"""

from riembn.plots.draw import band as band
from riembn.plots.draw import dots as dots
from riembn.plots.draw import figure as figure
from riembn.plots.draw import heat as heat
from riembn.plots.draw import label_ends as label_ends
from riembn.plots.draw import legend as legend
from riembn.plots.draw import line as line
from riembn.plots.globe import Globe as Globe
from riembn.plots.page import show as show
from riembn.plots.page import table as table
from riembn.plots.palette import BLUE as BLUE
from riembn.plots.palette import BROWN as BROWN
from riembn.plots.palette import DIVERGING as DIVERGING
from riembn.plots.palette import GREEN as GREEN
from riembn.plots.palette import GREY as GREY
from riembn.plots.palette import GRID as GRID
from riembn.plots.palette import INK as INK
from riembn.plots.palette import METHODS as METHODS
from riembn.plots.palette import MUTED as MUTED
from riembn.plots.palette import ORANGE as ORANGE
from riembn.plots.palette import PAPER as PAPER
from riembn.plots.palette import PURPLE as PURPLE
from riembn.plots.palette import Look as Look
from riembn.plots.palette import look as look
