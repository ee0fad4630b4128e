"""Puts the Sphinx extensions of docs/ on the path."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "docs" / "_ext"))
