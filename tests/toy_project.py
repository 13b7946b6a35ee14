"""A project folder with small notebooks, for tests of what runs notebooks."""

import shutil
from pathlib import Path

NOTEBOOKS = Path(__file__).parent / "notebooks"


def make_project(folder: Path, **sources: str) -> Path:
    """`folder` as a project; make_project(tmp, **{"01_baseline": "good"}) puts that fixture under that name."""
    (folder / "notebooks").mkdir(parents=True)
    (folder / "pyproject.toml").write_text('[project]\nname = "cotlib"\n')
    for name, fixture in sources.items():
        put_notebook(folder, name, fixture)
    return folder


def put_notebook(folder: Path, name: str, fixture: str) -> Path:
    """Copy a fixture notebook into the project."""
    return Path(shutil.copy(NOTEBOOKS / f"{fixture}.ipynb", folder / "notebooks" / f"{name}.ipynb"))
