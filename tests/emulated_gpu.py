"""A GPU that is not there: tensors on "cuda:0" with numbers on the CPU, and counts of the work.

A GPU works through its queue while the CPU goes on. Where the CPU needs a number from it, it waits
until the queue is empty. The emulation counts these waits, and the operations that are queued.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

GPU = torch.device("cuda:0")
WAITING = {
    "aten::_local_scalar_dense",  # item() and bool()
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::bincount",
    "aten::equal",
    "torchvision::nms",
}
ASKING_THE_DRIVER = (F.batch_norm, F.one_hot)
VIEWS = {"view", "select", "slice", "expand", "permute", "transpose", "t", "unsqueeze", "squeeze"}
VIEWS |= {"unbind", "split", "split_with_sizes", "alias", "detach", "as_strided", "_unsafe_view"}


class GPUTensor(Tensor):
    """A tensor that says it is on a GPU."""

    on_cpu: Tensor

    @staticmethod
    def __new__(cls, on_cpu: Tensor) -> GPUTensor:
        """Wrap a tensor on the CPU."""
        tensor = Tensor._make_wrapper_subclass(
            cls,
            on_cpu.size(),
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            device=GPU,
        )
        tensor.on_cpu = on_cpu
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute on the CPU, and count."""
        kwargs = dict(kwargs or {})
        name, target = func._schema.name, kwargs.pop("device", None)
        EmulatedGPU.count(name, args, target)
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        found = func(*tree_map(_on_cpu, args), **tree_map(_on_cpu, kwargs))
        leaves = target is not None and torch.device(target).type == "cpu"
        in_place = args and isinstance(args[0], GPUTensor) and found is args[0].on_cpu
        return args[0] if in_place else found if leaves else tree_map(_on_gpu, found)


def _on_cpu(value: Any) -> Any:
    return value.on_cpu if isinstance(value, GPUTensor) else value


def _on_gpu(value: Any) -> Any:
    return GPUTensor(value) if isinstance(value, Tensor) else value


class EmulatedGPU(TorchFunctionMode):
    """A context in which tensors can be made on the GPU or moved to it.

    Attributes:
        waits: Name of an operation → how often the CPU had to wait for it.
        operations: Name of an operation → how often it was queued; views are not.
    """

    _active: EmulatedGPU | None = None

    def __init__(self) -> None:
        """Start with no counts."""
        super().__init__()
        torch._C._ensureCUDADeviceGuardSet()
        self.waits: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()

    def __enter__(self) -> EmulatedGPU:
        """Begin to count."""
        EmulatedGPU._active = self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """Stop counting."""
        EmulatedGPU._active = None
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make tensors on the GPU, or move them to it, without a driver."""
        kwargs = dict(kwargs or {})
        if func is Tensor.tolist and isinstance(args[0], GPUTensor):
            self.waits["tolist"] += 1
            return args[0].on_cpu.tolist()
        if func is Tensor.to:
            return self._moved(*args, **kwargs)
        if func in ASKING_THE_DRIVER and isinstance(args[0], GPUTensor):
            self.operations[func.__name__] += 1
            return GPUTensor(func(*tree_map(_on_cpu, args), **tree_map(_on_cpu, kwargs)))
        device = kwargs.get("device")
        made_there = device is not None and torch.device(device).type == "cuda"
        if made_there and not any(isinstance(value, GPUTensor) for value in args):
            self.operations[func.__name__] += 1
            # Numbers of Python are copied, and the copy is waited for.
            self.waits[func.__name__] += func in (torch.tensor, torch.as_tensor)
            return GPUTensor(func(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)

    def _moved(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return what ``Tensor.to`` does."""
        target = args[0] if args else kwargs.pop("device", kwargs.get("dtype"))
        dtype = target if isinstance(target, torch.dtype) else kwargs.get("dtype")
        if isinstance(target, Tensor):
            dtype = target.dtype
        device = tensor.device if isinstance(target, torch.dtype) else target
        device = torch.device(getattr(device, "device", device))
        there, goes_there = isinstance(tensor, GPUTensor), device.type == "cuda"
        if there != goes_there and not kwargs.get("non_blocking"):
            self.waits["to"] += 1
        if there and goes_there and dtype in (None, tensor.dtype):
            return tensor
        if there or goes_there:
            self.operations["to"] += 1
        found = _on_cpu(tensor).to(dtype or tensor.dtype)
        return GPUTensor(found) if goes_there else found

    @classmethod
    def count(cls, name: str, args: Any, target: Any) -> None:
        """Count an operation."""
        if cls._active is None:
            return
        short = name.split("::")[1]
        if short not in VIEWS:
            cls._active.operations[short] += 1
        copies = target is not None and torch.device(target).type == "cpu"
        # A mask as an index is turned into positions first.
        masks = short in ("index", "index_put_", "index_put") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in WAITING or copies or masks:
            cls._active.waits[short] += 1


def on_emulated_gpu(model: nn.Module) -> nn.Module:
    """Return a copy of a model with its parameters and buffers on the GPU, for inference."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for name, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None:
                module._parameters.pop(name, None)
                module._buffers.pop(name, None)
                module.register_buffer(name, GPUTensor(value.detach()), persistent=False)
    return model
