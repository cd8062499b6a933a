"""The ops on Triton kernels: arguments checked, outputs allocated, kernels launched.

The functions take the arguments of ``dynprune.ops.schemas``. Index lists are on the device and are not read
here, so nothing waits for it: an index out of range is undefined, as in a CUDA kernel.
"""
