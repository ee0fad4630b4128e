"""Use an installed e2former_pyg far from its checkout: import, kernels inside, one forward."""

import importlib.util
from importlib.metadata import version
from pathlib import Path

import torch

import e2former_pyg
from e2former_pyg.graph import radius_graph

package = Path(e2former_pyg.__file__).parent
assert "site-packages" in package.parts, package
assert e2former_pyg.__version__ == version("e2former-pyg")
assert (package / "kernels" / "__init__.py").is_file()
assert not (package / "kernels").is_symlink()
assert importlib.util.find_spec("kernels") is None, "a top-level `kernels` was installed"

torch.manual_seed(0)
pos = torch.randn(5, 3)
edge_index, _ = radius_graph(pos, cutoff=5.0)
conv = e2former_pyg.E2FormerConv(8, 8, lmax=1)
out = conv(torch.randn(5, 4, 8), pos, edge_index)
assert out.shape == (5, 4, 8), out.shape
assert out.isfinite().all()
print(f"e2former_pyg {e2former_pyg.__version__}: the installed wheel works")
