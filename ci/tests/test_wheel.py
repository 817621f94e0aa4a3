"""What somebody gets who installs the package."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_wheel_holds_the_package_and_its_type_marker_alone(tmp_path: Path) -> None:
    source = (
        tmp_path / "source"
    )  # a copy, because setuptools leaves files of its own in the tree it builds from
    shutil.copytree(ROOT / "riembn", source / "riembn", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    built = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr

    (wheel,) = tmp_path.glob("*.whl")
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = (path for path in (source / "riembn").rglob("*") if path.suffix in (".py", ".c", ".h"))
    assert files == {path.relative_to(source).as_posix() for path in sources} | {"riembn/py.typed"}
