"""Which try of a study's tuning was the best, and does it stand at the edge of its grid?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas

from riembn.evidence import Study
from riembn.evidence.settings import edges
from riembn.experiment.store import Store
from riembn.pages.names import FIELDS, value_text
from riembn.pages.page import table
from riembn.pages.palette import look


def tuning(study: Study, store: Store | str | Path) -> None:
    """A table of what the tuning chose, a row a cell, and where a better one may lie outside of its grid.

    Args:
        study: One that tunes.
        store: Where the records of its tuning runs are.
    """
    rows = []
    for _, tries in study.tuned(store).groupby("cell"):
        tries = tries.dropna(axis=1, how="all")
        (best,) = tries[tries["best"]].to_dict("records")
        rates = tries["lr"]
        row: dict[str, Any] = {"method": look(best["method"]).label}
        row |= {FIELDS.get(name, name): value_text(best.get(name)) for name in study.vary}
        tried = [name for name in tries if name not in {"method", *study.vary, "cell", "best", study.tune_by}]
        row |= {"tries": len(tries), "rates": f"{rates.min():.3g} to {rates.max():.3g}"}
        row["best"] = ", ".join(f"{name} {value_text(best[name])}" for name in tried if best[name] == best[name])
        row["at the edge"] = ", ".join(edges(tries, tries[tries["best"]].iloc[0])) or "no"
        rows.append({**row, study.tune_by.replace("_", " "): best[study.tune_by]})
    count = len(study.tune_seeds)
    seeds = f"mean of {count} seeds" if count > 1 else "of one seed"
    table(
        pandas.DataFrame(rows),
        caption=f"What the tuning chose, on {study.holdout:,} held-out images: {seeds}. "
        "What is at the edge of its grid may be better beyond it.",
        formats={study.tune_by.replace("_", " "): "{:.3g}"},
        runs=[config.digest() for config in study.tuning()],
    )
