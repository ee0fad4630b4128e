"""Puts the scripts of benchmarks/ on the path, which import each other by their plain names."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
