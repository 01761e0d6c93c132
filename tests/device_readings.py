"""Finds code that waits for a device."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class NoReading(TorchDispatchMode):
    """Fails where a value on the device is read: here `meta` stands for a device whose values nobody has yet."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default and args[0].device.type != "cpu":
            raise AssertionError("a value of the device was read")
        return function(*args, **(kwargs or {}))
