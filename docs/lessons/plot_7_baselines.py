"""
Layers swapped into baselines
=============================

What ``examples/swap_schnet.py`` and ``examples/swap_attention.py`` print, here after fifteen
seconds of training for each model instead of sixty: too short to judge the models by, and the
numbers differ from machine to machine. :doc:`/guides/swap` shows how the layers are put in.
"""

import matplotlib.pyplot as plt
import swap_attention
import swap_schnet

# %%
# PyG's SchNet, and the same with ``E2FormerConv``: energies and forces of ethanol.

forces = swap_schnet.main(["--seconds", "15"])

# %%
# A graph transformer with PyG's ``TransformerConv``, and with ``E2FormerAttention``: the gap
# between the orbital energies HOMO and LUMO of molecules of QM9.

gaps = swap_attention.main(["--seconds", "15"])

# %%
# The errors of both pairs in one picture.

figure, panels = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
names = [name for name in forces if name != "mean predictor"]
values = [forces[name]["force_mae_mev_per_angstrom"] for name in names]
panels[0].barh(names, values, color=["C1", "C0"])
panels[0].set_xlabel("force error (meV/Å)")
names = [name for name in gaps if name != "mean predictor"]
panels[1].barh(names, [gaps[name] for name in names], color=["C1", "C0"])
panels[1].set_xlabel("gap error (eV)")
plt.show()
