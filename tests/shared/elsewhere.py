"""A pretended second device: tensors that say they are elsewhere, compute on the processor, and refuse to meet others.

As on a GPU, a number (a tensor without dimensions) and the index of something elsewhere may be here; whatever else is
mixed is an error. Every operation is seen, also those within transformers. Not a GPU: that ours are there was not shown
on one, only that nothing is left here that must be there.

To import this tells torch of the device for the rest of the process, and torch then asks it where it would ask a GPU:
only for processes of their own.
"""

import contextlib

import torch
from torch import library
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

__all__ = ["ELSEWHERE", "Elsewhere", "elsewhere"]


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend("elsewhere", backend_module=_Module())
ELSEWHERE = torch.device("elsewhere:0")
_ops = torch.ops.aten
INDEXING = (_ops.index.Tensor, _ops.index_put.default, _ops.index_put_.default, _ops._index_put_impl_.default)
MOVING = (_ops._to_copy.default, _ops.copy_.default)


class Elsewhere(torch.Tensor):
    """Says that it is elsewhere; ``here`` holds its numbers."""

    @staticmethod
    def __new__(cls, here):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=ELSEWHERE,
        )

    def __init__(self, here):
        self.here = here

    def tolist(self):
        return self.here.tolist()

    def __repr__(self, *, tensor_contents=None):
        return f"Elsewhere({self.here})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Watched(TorchDispatchMode):
    """Also sees operations that make tensors from nothing."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


def _run(function, args, kwargs):
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    there = [each for each in tensors if isinstance(each, Elsewhere)]
    mixed = there and any(not isinstance(each, Elsewhere) and each.ndim for each in tensors)
    if mixed and function not in MOVING and not (function in INDEXING and isinstance(args[0], Elsewhere)):
        raise RuntimeError(f"{function}: tensors on two devices")
    goes_there = bool(there)
    if kwargs.get("device") is not None:
        goes_there = torch.device(kwargs["device"]).type == ELSEWHERE.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    elif function is _ops.copy_.default:
        goes_there = isinstance(args[0], Elsewhere)
    args, kwargs = tree_map_only(Elsewhere, lambda each: each.here, (args, kwargs))
    result = function(*args, **kwargs)
    if not goes_there:
        return result
    same = {id(each.here): each for each in there}  # what an operation changed in place is given back itself
    return tree_map_only(torch.Tensor, lambda each: same[id(each)] if id(each) in same else Elsewhere(each), result)


@contextlib.contextmanager
def elsewhere():
    """Inside, tensors can be made elsewhere and moved there and back."""
    plain = torch.tensor

    def tensor(data, *args, device=None, **kwargs):  # it would go around the watch
        made = plain(data, *args, **kwargs)
        return made if device is None else made.to(device)

    torch.tensor = tensor
    try:
        with _Watched():
            yield
    finally:
        torch.tensor = plain


def _empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
    return Elsewhere(torch.empty_strided(size, stride, dtype=dtype))


def _empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return Elsewhere(torch.empty(size, dtype=dtype))


def _copy_from(source, target, non_blocking=False):
    source, into = (each.here if isinstance(each, Elsewhere) else each for each in (source, target))
    into.copy_(source)
    return target


_kernels = library.Library("aten", "IMPL")  # what torch's own indexing calls without asking anybody
_kernels.impl("empty_strided", _empty_strided, "PrivateUse1")
_kernels.impl("empty.memory_format", _empty, "PrivateUse1")
_kernels.impl("_copy_from", _copy_from, "PrivateUse1")
