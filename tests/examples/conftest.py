"""Puts the scripts of examples/ on the path, which import each other by their plain names."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "examples"))
