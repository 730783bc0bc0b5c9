"""A tensor whose value lies compressed in memory and is decompressed for the moment an operation needs it.

It has the true shape, dtype, strides and device. Autograd saves the compressed tensor; views (``t()``,
slices) are compressed too; any other operation sees a dense temporary that is gone when it returns. An
operation that writes to the tensor compresses the result again, whatever optimizer it comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_flatten, tree_unflatten

from neuzip.errors import InvalidArgument
from neuzip.nn.ops import linear
from neuzip.nn.sharding import post_all_gather, pre_all_gather
from neuzip.nn.weight import PIECE_BYTES, Weight, copied
from neuzip.torch import Framed

aten = torch.ops.aten

_VIEWS = {
    aten.t.default,
    aten.transpose.int,
    aten.view.default,
    aten._unsafe_view.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.permute.default,
    aten.expand.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.as_strided.default,
}
_ALIASES = {aten.detach.default, aten.alias.default}


class CompressedTensor(Framed, torch.Tensor):
    """A dense tensor's stand-in over a :class:`~neuzip.nn.weight.Weight`.

    Make one with :meth:`compress`; :meth:`dense` gives the ordinary tensor back, equal in every bit.
    """

    weight: Weight
    weight_class = Weight

    @staticmethod
    def __new__(
        cls,
        weight: Weight | CompressedTensor,
        size: torch.Size | tuple[int, ...] | None = None,
        stride: tuple[int, ...] | None = None,
        offset: int = 0,
        *,
        requires_grad: bool = False,
    ) -> Self:
        if isinstance(weight, CompressedTensor):
            size, stride, offset = weight.size(), weight.stride(), int(weight.storage_offset())
        size = weight.shape if size is None else tuple(size)
        stride = _contiguous_stride(size) if stride is None else tuple(stride)
        return torch.Tensor._make_wrapper_subclass(
            cls,
            size,
            strides=stride,
            storage_offset=offset,
            dtype=weight.dtype,
            device=weight.device,
            requires_grad=requires_grad,
        )

    def __init__(
        self, weight: Weight | CompressedTensor, *geometry: Any, requires_grad: bool | None = None
    ) -> None:
        self.weight = weight.weight if isinstance(weight, CompressedTensor) else weight
        if requires_grad is not None:
            # accelerate makes parameters by calling a parameter's class, as one calls nn.Parameter.
            self._is_param = True

    def data_ptr(self) -> int:
        """The frame's address, by which tied weights are told from others."""
        return self.weight.frame.data_ptr()

    @classmethod
    def compress(
        cls, dense: torch.Tensor, level: str = "default", piece_bytes: int = PIECE_BYTES
    ) -> CompressedTensor:
        """A compressed copy of a dense float tensor. Raises InvalidArgument for tensors of other dtypes."""
        if isinstance(dense, CompressedTensor):
            dense = dense.dense()
        if is_traceable_wrapper_subclass(dense):
            raise InvalidArgument(
                f"a {type(dense).__name__} cannot be compressed; compress, then distribute it"
            )
        if not dense.is_floating_point():
            raise InvalidArgument(f"only float tensors are compressed in memory, not {dense.dtype}")
        return cls(Weight.of(dense, level, piece_bytes))

    def is_whole(self) -> bool:
        """Whether this is the weight itself and no partial or transposed view of it."""
        return tuple(self.shape) == self.weight.shape and self.is_contiguous() and self.storage_offset() == 0

    def is_leading(self) -> bool:
        """Whether this is the weight's first rows, maybe all: what FSDP makes of a shard padded with rows."""
        inner = tuple(self.shape[1:]) == self.weight.shape[1:]
        return inner and self.is_contiguous() and self.storage_offset() == 0

    def dense(self) -> torch.Tensor:
        """The ordinary tensor: detached, freshly allocated, with this tensor's shape and strides."""
        whole = self.weight.dense()
        return (
            whole if self.is_whole() else whole.as_strided(self.shape, self.stride(), self.storage_offset())
        )

    def whole_frame(self) -> torch.Tensor | None:
        """The frame, uint8 (frame_size,), if this is the weight itself; what saving writes as it is."""
        return self.weight.frame if self.is_whole() else None

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        ratio = self.weight.nbytes / max(1, self.weight.dense_nbytes)
        return (
            f"{type(self).__name__}(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device}, "
            f"ratio={ratio:.3f}, requires_grad={self.requires_grad})"
        )

    # torch.compile and FSDP take the tensor apart and put it together through these two.
    @property
    def frame(self) -> torch.Tensor:
        return self.weight.frame

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        geometry = (tuple(self.shape), tuple(self.stride()), self.storage_offset())
        weight = self.weight
        settings = (weight.shape, weight.dtype, weight.level, weight.piece_bytes, weight.chunk_log2)
        return ["frame"], (*settings, weight.target, geometry)

    @classmethod
    def __tensor_unflatten__(
        cls, inner: dict[str, torch.Tensor], meta: Any, outer_size: Any, outer_stride: Any
    ) -> CompressedTensor:
        *settings, target, geometry = meta
        weight = cls.weight_class(inner["frame"], *settings)
        weight.target = target
        return cls(weight, *geometry)

    # fully_shard calls these on a rank's shard; it tells their versions apart by the number of parameters.
    def fsdp_pre_all_gather(
        self, mesh: Any, outer_size: torch.Size, outer_stride: tuple[int, ...], module: Any, mp_policy: Any
    ) -> Any:
        return pre_all_gather(self, mesh, outer_size, mp_policy)

    def fsdp_post_all_gather(
        self, outputs: Any, metadata: Any, param_dtype: torch.dtype, *, out: torch.Tensor | None = None
    ) -> Any:
        return post_all_gather(outputs, metadata, param_dtype, out)

    def __reduce_ex__(self, protocol: Any) -> Any:
        weight = self.weight
        # Another tensor of the same bytes: what this process has remembered with the first is nobody else's.
        settings = (weight.level, weight.piece_bytes, weight.chunk_log2)
        state = (weight.frame.detach(), weight.shape, weight.dtype, *settings)
        geometry = (tuple(self.shape), tuple(self.stride()), self.storage_offset())
        return _rebuild, (
            type(self),
            state,
            geometry,
            self.requires_grad,
            isinstance(self, torch.nn.Parameter),
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) in memo:
            return memo[id(self)]
        weight = memo.setdefault(id(self.weight), self.weight.copy())
        copy = _as_like(type(self)(weight, self.shape, self.stride(), self.storage_offset()), self)
        if self.grad is not None:
            copy.grad = self.grad.clone()
        memo[id(self)] = copy
        return copy

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        # Above autograd only the linear layer is special: two decodes a step and nothing dense saved.
        if func is F.linear:
            return linear(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, CompressedTensor):
            if func in _ALIASES:
                return _view(first, first)
            if func in _VIEWS:
                return _view(first, func(_geometry(first), *args[1:], **kwargs))
            if func is aten.clone.default and first.is_whole():
                return type(first)(first.weight.copy())
            if func is aten._to_copy.default and first.is_leading():
                return _to_copy(first, **kwargs)
            if func is aten.copy_.default:
                return _copy_into(first, args[1])
            if func is aten.embedding.default and first.dim() == 2 and first.is_whole():
                weight = first.weight
                return torch.ops.neuzip.embedding(args[1], weight.frame, weight.shape, weight.dtype)
            if func is aten.new_zeros.default and kwargs.get("dtype") in (None, first.dtype):
                # fully_shard makes the memory of a shard in this way.
                return _zeros(first, args[1], kwargs.get("device"))
            if func is aten.is_pinned.default:
                return first.weight.frame.is_pinned()
            if func is aten._pin_memory.default:
                pinned = first.weight.with_frame(first.weight.frame.pin_memory())
                return cls(pinned, first.shape, first.stride(), first.storage_offset())
        return _on_dense(func, args, kwargs)


def _contiguous_stride(size: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for extent in reversed(size):
        strides.append(step)
        step *= max(extent, 1)
    return tuple(reversed(strides))


def _geometry(tensor: CompressedTensor) -> torch.Tensor:
    """A tensor without memory of the same shape, strides and offset, on which views can be tried."""
    base = torch.empty(tensor.weight.shape, dtype=tensor.dtype, device="meta")
    return base.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _view(tensor: CompressedTensor, like: torch.Tensor) -> CompressedTensor:
    # A view of an ordinary tensor is one too, even when it is taken in inference mode. The mode is not entered for
    # nothing: a signal within would leave torch's dispatcher without autograd.
    right = tensor.is_inference() == torch.is_inference_mode_enabled()
    with nullcontext() if right else torch.inference_mode(tensor.is_inference()):
        return type(tensor)(tensor.weight, like.shape, like.stride(), like.storage_offset())


def _as_like(tensor: CompressedTensor, like: torch.Tensor) -> Any:
    if isinstance(like, torch.nn.Parameter):
        return torch.nn.Parameter(tensor, requires_grad=like.requires_grad)
    return tensor.requires_grad_(like.requires_grad)


def _rebuild(
    kind: type[CompressedTensor], state: Any, geometry: Any, requires_grad: bool, parameter: bool
) -> Any:
    weight = kind.weight_class(*state)
    weight.check()  # the file may come from anywhere
    tensor = kind(weight, *geometry)
    if parameter:
        return torch.nn.Parameter(tensor, requires_grad=requires_grad)
    return tensor.requires_grad_(requires_grad)


def _to_copy(
    tensor: CompressedTensor, *, dtype: torch.dtype | None = None, device: Any = None, **options: Any
) -> torch.Tensor:
    """``.to()``: another device moves the frame, another float dtype is compressed anew."""
    if dtype is None or dtype == tensor.dtype:
        weight = tensor.weight.copy(device)
        kind = type(tensor) if isinstance(weight, type(tensor).weight_class) else CompressedTensor
        return kind(weight, tensor.shape, tensor.stride())
    dense = tensor.dense().to(dtype=dtype, device=device)
    if not dtype.is_floating_point:
        return dense
    return type(tensor)(tensor.weight.like(dense))


def _zeros(tensor: CompressedTensor, size: Any, device: Any) -> CompressedTensor:
    if type(tensor.weight) is not Weight:
        raise InvalidArgument(
            "only weights as compress_model makes them can be sharded, not those for inference"
        )
    zeros = torch.zeros(tuple(size), dtype=tensor.dtype, device=tensor.device if device is None else device)
    return type(tensor).compress(zeros, tensor.weight.level, tensor.weight.piece_bytes)


def _copy_into(target: CompressedTensor, source: torch.Tensor) -> CompressedTensor:
    weight = target.weight
    if not target.is_whole():
        dense = weight.dense()
        dense.as_strided(target.shape, target.stride(), target.storage_offset()).copy_(_dense_of(source))
        weight.assign(dense)
    elif isinstance(source, CompressedTensor) and source.is_whole() and weight.shares_form(source.weight):
        if tuple(source.shape) != weight.shape:
            raise InvalidArgument(f"a weight of shape {weight.shape} cannot take {tuple(source.shape)}")
        weight.take(copied(source.weight.frame))
    else:
        weight.assign(_dense_of(source).to(weight.device).expand(weight.shape))
    return target


def _dense_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.dense() if isinstance(tensor, CompressedTensor) else tensor


def _on_dense(func: Any, args: Any, kwargs: Any) -> Any:
    """Runs an operation on dense temporaries; compresses those it has written to."""
    flat, spec = tree_flatten((args, kwargs))
    wholes: dict[int, tuple[Weight, torch.Tensor]] = {}

    def temporary(value: Any) -> Any:
        if not isinstance(value, CompressedTensor):
            return value
        weight = value.weight
        _, whole = wholes.setdefault(id(weight), (weight, weight.dense()))
        return whole.as_strided(value.shape, value.stride(), value.storage_offset())

    dense_args, dense_kwargs = tree_unflatten([temporary(value) for value in flat], spec)
    result = func(*dense_args, **dense_kwargs)
    written = _written(func, args, kwargs)
    for weight, whole in wholes.values():
        if any(value.weight is weight for value in written):
            weight.assign(whole)
    return _own_results(func, args, kwargs, result)


def _written(func: Any, args: Any, kwargs: Any) -> list[CompressedTensor]:
    """The compressed arguments that an operation's schema says it writes to."""
    if not func._schema.is_mutable:
        return []
    written: list[CompressedTensor] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        values = value if isinstance(value, (list, tuple)) else [value]
        written += [v for v in values if isinstance(v, CompressedTensor)]
    return written


def _own_results(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """In-place operations return their argument, not the temporary."""
    if func._schema.is_mutable and len(func._schema.returns) == 1:
        returned = func._schema.returns[0].alias_info
        if returned is not None and returned.is_write:
            for position, argument in enumerate(func._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    return args[position] if position < len(args) else kwargs[argument.name]
    return result


# What torch.load may call with weights_only=True, its default, which distributed checkpoints use too.
torch.serialization.add_safe_globals([CompressedTensor, _rebuild])
