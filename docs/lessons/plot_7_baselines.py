"""
Layers swapped into baselines
=============================

What ``examples/swap_schnet.py`` and ``examples/swap_attention.py`` print, here after fifteen
seconds of training for each model instead of sixty: too short to judge the models by, and the
numbers differ from machine to machine. :doc:`/guides/swap` shows how the layers are put in.
"""

import swap_attention
import swap_schnet

# %%
# PyG's SchNet, and the same with ``E2FormerConv``: energies and forces of ethanol.

errors = swap_schnet.main(["--seconds", "15"])

# %%
# A graph transformer with PyG's ``TransformerConv``, and with ``E2FormerAttention``: the gap
# between the orbital energies HOMO and LUMO of molecules of QM9.

errors = swap_attention.main(["--seconds", "15"])
