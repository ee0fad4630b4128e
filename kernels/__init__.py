"""Triton sources and their launchers, imported only as ``e2former_pyg.kernels``.

A kernel knows tensors and their layout, never modules or datasets; operators are registered in
``e2former_pyg.functional``. Nothing outside this package imports it unless a Triton backend was
chosen, so that ``import e2former_pyg`` needs neither Triton nor CUDA.
"""
