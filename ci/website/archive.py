"""All records in one file: with what each field means, a JSON Schema of those of runs, and how to cite them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from riembn.experiment.record import COLUMNS, SCHEMA

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file can say: the same records give the same file

_FIELDS = {
    "schema": "version of this form",
    "recipe": "version of what a configuration means; it is part of the digest",
    "digest": "of configuration and recipe: two runs that would compute the same share it",
    "status": "finished, or diverged: stopped because a training loss was not finite",
    "diverged_step": "the step, counted from 0, whose loss was not finite; null of a finished run",
    "config": "what was run: the fields of riembn.RunConfig",
    "environment": "where: device, versions, commit, threads, wall time",
    "columns": "one value an epoch in each; null where a column has no meaning for the method",
}


def schema() -> dict[str, Any]:
    """The form of a record as a JSON Schema: its data dictionary."""
    kinds: dict[str, Any] = {
        "schema": {"const": SCHEMA},
        "recipe": {"type": "integer", "minimum": 1},
        "digest": {"type": "string", "pattern": "^[0-9a-f]{16}$"},
        "status": {"enum": ["finished", "diverged"]},
        "diverged_step": {"type": ["integer", "null"]},
        "config": {"type": "object"},
        "environment": {"type": "object"},
    }
    column = {"type": "array", "items": {"type": ["number", "null"]}}
    columns = {name: {**column, "description": means} for name, means in COLUMNS.items()}
    kinds["columns"] = {"type": "object", "properties": columns, "additionalProperties": False}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Record of a training run",
        "type": "object",
        "required": list(_FIELDS),
        "properties": {name: {**kinds[name], "description": means} for name, means in _FIELDS.items()},
    }


def citation(root: Path, commit: str) -> str:
    """One line to cite the records by."""
    import yaml

    told = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    authors = ", ".join(one.get("name") or f"{one['given-names']} {one['family-names']}" for one in told["authors"])
    return f"{authors}: {told['title']}. Version {told['version']}, commit {commit}. License: {told['license']}."


def archive(runs: Sequence[Path], benchmarks: Sequence[Path], readme: str, cite: str) -> bytes:
    """A zip file of the records, byte for byte the same for the same ones."""
    content = {f"records/{file.name}": file.read_bytes() for file in runs}
    content |= {f"benchmarks/{file.name}": file.read_bytes() for file in benchmarks}
    content["README.md"] = readme.encode()
    content["schema.json"] = (json.dumps(schema(), indent=1, ensure_ascii=False) + "\n").encode()
    content["CITATION.txt"] = f"{cite}\n".encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name in sorted(content):
            file.writestr(zipfile.ZipInfo(f"riembn-records/{name}", _EPOCH), content[name], zipfile.ZIP_DEFLATED)
    return packed.getvalue()
