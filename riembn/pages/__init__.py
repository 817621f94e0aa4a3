"""Figures and tables of the book, and studies on a page.

One palette, one way to draw an interval, one way onto a page; the only place that imports matplotlib.
"""

from riembn.pages.ablation import ablation as ablation
from riembn.pages.ablation import awaited as awaited
from riembn.pages.ablation import comparisons as comparisons
from riembn.pages.ablation import design as design
from riembn.pages.ablation import differences as differences
from riembn.pages.ablation import outcome as outcome
from riembn.pages.ablation import verdict as verdict
from riembn.pages.draw import band as band
from riembn.pages.draw import dots as dots
from riembn.pages.draw import figure as figure
from riembn.pages.draw import heat as heat
from riembn.pages.draw import label_ends as label_ends
from riembn.pages.draw import legend as legend
from riembn.pages.draw import line as line
from riembn.pages.globe import Globe as Globe
from riembn.pages.names import value_text as value_text
from riembn.pages.page import say as say
from riembn.pages.page import show as show
from riembn.pages.page import table as table
from riembn.pages.palette import BLUE as BLUE
from riembn.pages.palette import BROWN as BROWN
from riembn.pages.palette import DIVERGING as DIVERGING
from riembn.pages.palette import GREEN as GREEN
from riembn.pages.palette import GREY as GREY
from riembn.pages.palette import GRID as GRID
from riembn.pages.palette import INK as INK
from riembn.pages.palette import METHODS as METHODS
from riembn.pages.palette import MUTED as MUTED
from riembn.pages.palette import ORANGE as ORANGE
from riembn.pages.palette import PAPER as PAPER
from riembn.pages.palette import PURPLE as PURPLE
from riembn.pages.palette import Look as Look
from riembn.pages.palette import look as look
from riembn.pages.tuning import tuning as tuning
