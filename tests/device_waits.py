"""A mode that fails on what would wait for a device."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class NoSyncNoDouble(TorchDispatchMode):
    """Fails on what would wait for a device, look something up there, or need float64."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), function
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.ndim:
            assert result.dtype != torch.float64, function
        return result
