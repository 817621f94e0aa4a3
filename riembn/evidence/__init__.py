"""What runs say: intervals and comparisons over seeds, studies, and the verdict on each claim."""

from . import claims as claims
from . import stats as stats
from .study import Study as Study
