"""Kernels in Triton: numbers behind pointers, as in ``kernels/cpu``; no torch here.

Installed as ``dynprune.kernels_triton``. ``dynprune.ops.triton`` checks arguments, allocates and launches.
"""
