"""A torch optimizer that steps each weight inside backward, as soon as its gradient is there, and frees the gradient.

After LOMO (Lv et al. 2023, arXiv:2306.09782) and NeuZip (Hao et al. 2024, arXiv:2410.20650), for any elementwise
optimizer and with the states compressed too.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, overload

import torch
from torch.autograd.graph import increment_version

from neuzip.errors import InvalidArgument
from neuzip.nn import CompressedTensor
from neuzip.optim.clipping import NormPass, clip_factor
from neuzip.optim.elementwise import Traits, check_closure, try_out
from neuzip.optim.state import State, hold
from neuzip.optim.stepper import Stepper, is_split, piece_size

PIECE_BYTES = 4 << 20
"""Dense bytes of a weight that are stepped at a time: temporaries are a few times that. Below, calls begin to cost."""

_TWICE = (
    "its gradient came again before opt.step(), but it has been stepped with the first. Run all but the last backward "
    "of a step inside `with opt.accumulate():`. If there was only one, a tied weight met reentrant checkpointing: "
    "use checkpoint(..., use_reentrant=False). If the last one was interrupted or failed, it had stepped some weights: "
    "opt.zero_grad(), and load a checkpoint, or go on from there after opt.step()"
)


def fused(
    model: torch.nn.Module | Iterable[Any],
    optimizer_class: type[torch.optim.Optimizer],
    *,
    max_grad_norm: float | None = None,
    in_backward: bool = True,
    piece_bytes: int = PIECE_BYTES,
    **options: Any,
) -> FusedOptimizer:
    """An optimizer of ``optimizer_class`` with ``options`` that steps the model's weights inside backward.

    The loop stays ``loss.backward(); opt.step(); opt.zero_grad()``, and every bit of the weights is what the ordinary
    optimizer gives. Gradients are freed in backward, so what comes between backward and step finds none; use
    ``with opt.accumulate():`` for steps of several backwards, and ``max_grad_norm`` with
    :meth:`FusedOptimizer.backward` to clip.

    model: a module, compressed before or not at all, or what torch optimizers take: parameters or param groups.
    max_grad_norm: clip as ``torch.nn.utils.clip_grad_norm_`` does, by running forward and backward twice.
    in_backward: if false, gradients are kept and ``step()`` steps weight by weight: for GradScaler, several processes,
    or a loop that looks at gradients.
    piece_bytes: dense bytes of a weight stepped at a time, rounded down to 64 Ki elements but at least that.

    Raises InvalidArgument for an optimizer that needs a closure (LBFGS) or does not step parameters independently; for
    one that is not elementwise (Adafactor, Muon) if a weight is larger than its own ``piece_bytes``; for several
    processes, whose gradients backward would not average first.
    """
    return FusedOptimizer(
        model,
        optimizer_class,
        options,
        max_grad_norm=max_grad_norm,
        in_backward=in_backward,
        piece_bytes=piece_bytes,
    )


class FusedOptimizer(torch.optim.Optimizer):
    """See :func:`fused`. ``state`` holds float tensors of a weight's shape as :class:`~neuzip.nn.CompressedTensor`.

    Attribute ``grad_norm``: the total norm before clipping in the last :meth:`backward`, or None.
    """

    def __init__(
        self,
        model: torch.nn.Module | Iterable[Any],
        optimizer_class: type[torch.optim.Optimizer],
        options: dict[str, Any],
        *,
        max_grad_norm: float | None = None,
        in_backward: bool = True,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        check_closure(optimizer_class)
        module = model if isinstance(model, torch.nn.Module) else None
        self._module = module
        self._names = {} if module is None else {id(each): name for name, each in module.named_parameters()}
        self._class, self._options = optimizer_class, options
        self._max_grad_norm, self._in_backward, self._piece_bytes = max_grad_norm, in_backward, piece_bytes
        self.grad_norm: torch.Tensor | None = None
        self._traits: dict[tuple[int, torch.dtype, int], Traits] = {}
        self._group_of: dict[int, int] = {}
        self._handles: dict[int, Any] = {}
        self._stepped: set[int] = set()
        self._accumulating = 0
        self._norm_pass: NormPass | None = None
        self._clip: torch.Tensor | None = None
        given: Iterable[Any] = module.parameters() if module is not None else model  # type: ignore[assignment]
        groups = _listed(given)
        if not groups:
            raise InvalidArgument("there are no parameters to optimize")
        template = self._make([_placeholder(_first(groups))])
        self._stepper = Stepper(template, options)
        super().__init__(groups, template.defaults)

    def _make(self, parameters: list[Any]) -> torch.optim.Optimizer:
        return self._class(parameters, **self._options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters, with options of their own. Errors as of :func:`fused`."""
        super().add_param_group(param_group)
        number = len(self.param_groups) - 1
        for parameter in self.param_groups[number]["params"]:
            self._group_of[id(parameter)] = number
            if parameter.requires_grad:
                self._check(parameter, number)
                self._watch(parameter)

    def _check(self, parameter: torch.Tensor, number: int) -> None:
        name = self._names.get(id(parameter))
        if self._in_backward and _is_replicated(parameter):
            raise InvalidArgument(
                "with several processes, gradients are averaged only after backward: use in_backward=False",
                tensor=name,
            )
        if self._trait(parameter, number).elementwise or not isinstance(parameter, CompressedTensor):
            return
        weight = parameter.weight
        if weight.dense_nbytes > weight.piece_bytes:
            raise InvalidArgument(
                f"{self._class.__name__} is not elementwise, so it cannot step a weight of {weight.dense_nbytes} "
                f"bytes in pieces of {weight.piece_bytes}; compress it with larger piece_bytes",
                tensor=name,
            )

    def _trait(self, parameter: torch.Tensor, number: int) -> Traits:
        """What the optimizer does to parameters like this one with the options of a group."""
        key = (number, parameter.dtype, max(1, parameter.dim()))
        if key not in self._traits:
            group = {
                name: value for name, value in self.param_groups[number].items() if name not in _PARAMETERS
            }

            def make(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
                return self._make([{**group, "params": parameters}])

            def make_step() -> Callable[[torch.nn.Parameter, State], State]:
                stepper = Stepper(make([_placeholder(parameter)]), self._options)
                return lambda slot, state: stepper.step_slot(slot, group, state)

            self._traits[key] = try_out(make, make_step, *key[1:])
        return self._traits[key]

    def _watch(self, parameter: torch.Tensor) -> None:
        if id(parameter) in self._handles or not parameter.requires_grad:
            return
        me = weakref.ref(self)  # a model outlives its optimizers

        def hook(parameter: torch.Tensor) -> None:
            optimizer = me()
            if optimizer is not None:
                optimizer._on_gradient(parameter)

        handle = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
        self._handles[id(parameter)] = handle

    def close(self) -> None:
        """Takes the hooks off the model: this optimizer no longer steps in backward. Gradients are kept again."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        self._in_backward = False

    # --- inside backward ----------------------------------------------------------------------------------------

    def _on_gradient(self, parameter: torch.Tensor) -> None:
        if self._accumulating or not self._in_backward:
            return
        try:
            if parameter.grad is None:
                raise InvalidArgument(
                    "its gradient has been taken by another hook: is there another fused optimizer?"
                )
            if id(parameter) in self._stepped:
                raise InvalidArgument(_TWICE)
            if self._norm_pass is not None:
                self._norm_pass.take(parameter, parameter.grad)
                parameter.grad = None
                return
            if self._max_grad_norm is not None and self._clip is None:
                raise InvalidArgument(
                    "max_grad_norm needs two passes: use opt.backward(closure), not loss.backward()"
                )
            if self._clip is not None:
                parameter.grad.mul_(self._clip.to(parameter.grad.device))
            self._step_one(parameter, self._group_of[id(parameter)])
            self._stepped.add(id(parameter))
        except InvalidArgument as error:
            parameter.grad = None  # step() would take it, or the next backward add to it
            raise error.at(tensor=self._names.get(id(parameter))) from None

    @torch.no_grad()
    def _step_one(self, parameter: torch.Tensor, number: int) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        size = parameter.numel()
        if is_split(parameter):
            piece = piece_size(parameter, self._piece_bytes)
            if self._trait(parameter, number).may_cut(size, piece, torch.get_num_threads()):
                size = piece
        state = self.state.get(parameter, {})
        new = self._stepper.step(parameter, gradient, self.param_groups[number], state, size)
        if new:
            self.state[parameter] = new
        # A graph that has saved the old value must not be run with the new one.
        increment_version(parameter)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """GradScaler.step asks for this first."""
        if self._stepped:
            raise InvalidArgument(
                "weights have been stepped in backward with scaled gradients: "
                "with GradScaler use in_backward=False, or run every backward inside `with opt.accumulate():`"
            )
        return False

    # --- the loop's side ----------------------------------------------------------------------------------------

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Within it backward keeps gradients and steps nothing: for all but the last backward of a step.

        What has a gradient when the last one ends, or at ``step()``, is stepped with the sum. With every backward
        inside, gradients are ordinary ones: they can be looked at, clipped or unscaled before ``step()``.
        """
        self._accumulating += 1
        try:
            yield
        finally:
            self._accumulating -= 1

    def backward(self, closure: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Computes the loss and runs backward, with clipping if ``max_grad_norm`` is set; returns the loss, detached.

        closure: computes the loss of a batch. With clipping it is called twice, with the same random numbers and the
        same buffers, and must not fetch the batch itself: the first backward finds the norm of all gradients, the
        second steps with clipped ones. Gradients kept by :meth:`accumulate` are clipped in place, as usual.

        Raises InvalidArgument if the second loss differs from the first.
        """
        kept = self._accumulating or not self._in_backward or self._any_gradient()
        if self._max_grad_norm is None or self._accumulating:
            return _backward(closure)
        if kept:
            with self.accumulate():
                loss = _backward(closure)
            self.grad_norm = torch.nn.utils.clip_grad_norm_(self._parameters(), self._max_grad_norm)
            return loss
        first, total = self._first_pass(closure)
        self.grad_norm, self._clip = total, clip_factor(total, self._max_grad_norm)
        try:
            with torch.enable_grad():
                loss = closure()
            if not torch.allclose(loss, first, rtol=0, atol=0, equal_nan=True):
                raise InvalidArgument(
                    f"the closure gave a loss of {first.item()!r} and then {loss.item()!r}: "
                    "it must compute the same twice"
                )
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()
        finally:
            self._clip = None

    def _first_pass(self, closure: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        buffers = (
            [] if self._module is None else [(each, each.detach().clone()) for each in self._module.buffers()]
        )
        devices = {each.device.index for each in self._parameters() if each.device.type == "cuda"}
        self._norm_pass = NormPass()
        try:
            with torch.random.fork_rng(devices=devices):
                loss = _backward(closure)
            return loss, self._norm_pass.total(self._parameters())
        finally:
            self._norm_pass = None
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Ends a step: whatever still has a gradient is stepped, one weight at a time, and its gradient freed.

        closure: as of torch optimizers; runs backward and returns the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for number, group in enumerate(self.param_groups):
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_one(parameter, number)
                self._watch(parameter)  # it may have been frozen before
        self._stepped.clear()
        self._stepper.release()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state of this class or of the ordinary optimizer over the same parameters.

        A step that a backward had begun, and not ended, is forgotten: load the model's weights, too.
        """
        super().load_state_dict(state_dict)
        self._stepped.clear()
        saved = [each for group in state_dict["param_groups"] for each in group["params"]]
        for key, parameter in zip(saved, self._parameters(), strict=True):
            if parameter not in self.state:
                continue
            state, ours = self.state[parameter], state_dict["state"].get(key, {})
            if any(isinstance(value, CompressedTensor) for value in ours.values()):
                # torch casts states to the parameter's dtype; those saved here have the one they are used in.
                state.update(
                    {name: _on_device(value, parameter) for name, value in ours.items() if name != "step"}
                )
            if is_split(parameter):
                level = parameter.weight.level if isinstance(parameter, CompressedTensor) else "default"
                self.state[parameter] = hold(state, parameter.shape, level)

    def dense_state_dict(self) -> dict[str, Any]:
        """The state_dict with ordinary tensors, as ``optimizer_class`` itself would have it."""
        packed = self.state_dict()
        packed["state"] = {
            key: {
                name: value.dense() if isinstance(value, CompressedTensor) else value
                for name, value in state.items()
            }
            for key, state in packed["state"].items()
        }
        return packed

    def _parameters(self) -> list[torch.Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _any_gradient(self) -> bool:
        return any(parameter.grad is not None for parameter in self._parameters())


_PARAMETERS = ("params", "param_names")


def _backward(closure: Callable[[], torch.Tensor]) -> torch.Tensor:
    with torch.enable_grad():
        loss = closure()
        loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _listed(given: Iterable[Any]) -> list[Any]:
    """Parameters or param groups, with generators run out."""
    return [
        {
            **each,
            "params": [each["params"]] if isinstance(each["params"], torch.Tensor) else list(each["params"]),
        }
        if isinstance(each, dict)
        else each
        for each in given
    ]


def _first(groups: list[Any]) -> torch.Tensor:
    first = groups[0]["params"][0] if isinstance(groups[0], dict) else groups[0]
    parameter: torch.Tensor = first[1] if isinstance(first, tuple) else first  # (name, parameter)
    return parameter


def _placeholder(parameter: torch.Tensor) -> torch.nn.Parameter:
    """Something small to make an optimizer with that looks at dimensions and dtypes, as Muon does."""
    return torch.nn.Parameter(torch.zeros((1,) * parameter.dim(), dtype=parameter.dtype))


def _on_device(value: Any, parameter: torch.Tensor) -> Any:
    return value.to(parameter.device) if isinstance(value, torch.Tensor) else value


def _is_replicated(parameter: torch.Tensor) -> bool:
    """Whether other processes may hold the same parameter and backward leaves this process's gradient to it."""
    distributed = torch.distributed
    if (
        not distributed.is_available()
        or not distributed.is_initialized()
        or distributed.get_world_size() == 1
    ):
        return False
    return type(parameter.data) in (torch.Tensor, CompressedTensor)
