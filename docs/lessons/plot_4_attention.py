r"""
Where attention looks
=====================

:obj:`return_attention_weights=True` returns the weight of each edge and head, as PyG's attention
layers do. The weights of a target sum to less than one: what is missing went to the sink.

The layer is untrained and has directions switched on; the molecule is ethanol.
"""

import matplotlib.pyplot as plt
import torch
from ethanol_data import load_ethanol

from e2former_pyg import E2FormerAttention

torch.manual_seed(0)
data = load_ethanol(cutoff=4.0)[0]
embedding = torch.nn.Embedding(10, 32)
options = {"heads": 4, "cutoff": 4.0, "directional": True}
layer = E2FormerAttention(32, 32, lmax=2, lmax_in=0, **options).eval()
with torch.no_grad():
    x = embedding(data.z)
    out, (edge_index, alpha) = layer(
        x, data.pos, data.edge_index, data.z, return_attention_weights=True
    )
print(out.shape, alpha.shape)

# %%
# Edges into the oxygen atom, one picture for each head; lines are as wide as the weight.

target = int((data.z == 8).nonzero()[0])
flat = data.pos - data.pos.mean(0)
flat = flat @ torch.linalg.svd(flat)[2].T  # along the molecule's principal axes
colors = {1: "lightgrey", 6: "dimgrey", 8: "tab:red"}

figure, panels = plt.subplots(1, 4, figsize=(8, 2.6), layout="constrained")
for head, axes in enumerate(panels):
    for edge in (edge_index[1] == target).nonzero().flatten():
        width = 40 * float(alpha[edge, head])
        ends = flat[edge_index[:, edge], :2].T
        axes.plot(*ends, color="tab:blue", linewidth=width, alpha=0.6)
    shades = [colors[int(z)] for z in data.z]
    axes.scatter(*flat[:, :2].T, c=shades, s=90, edgecolors="black", zorder=3)
    total = float(alpha[edge_index[1] == target, head].sum())
    axes.set(title=f"head {head}, sum {total:.2f}", aspect="equal")
    axes.margins(0.15)
    axes.set_axis_off()
plt.show()
