"""From the chapters to the website: run what changed, stage, render, check."""

import sys

# jsonschema would build a grammar of internationalized addresses, 1.3 s each time; no notebook is checked for one.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
