"""Replica: a model under DDP behind the user's own module, which stays what is called."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parallel.distributed import _find_tensors

from trainlab.errors import InvalidStateError
from trainlab.parallel.options import DDPOptions
from trainlab.parallel.replication import users_module

__all__ = ["Replica", "Stage"]

# So long all gradients are watched, at the price of a Python call each: a program that computes some of them past the
# exchange does so from its beginning.
_WATCHED_BATCHES = 20
_SPARSE = (nn.Embedding, nn.EmbeddingBag)


@dataclass(slots=True)
class Stage:
    """Where a run stands, as its replicas have to know in each call."""

    reduces: bool = True
    is_evaluating: bool = False
    # In a loop of the user's own: called before each forward pass that is trained; a backward pass follows unannounced.
    begin: Callable[[], None] | None = None


class Replica:
    """A model, its DDP object, and whether the gradients that it has were exchanged.

    It takes the place of what ``torch.nn.Module.compile`` sets: the one attribute that all calls of a module go
    through, hooks included, and that neither its copies nor its pickles nor its state dict have. So the module stays
    the user's own in every other way.

    Args:
        name: the model's number, for messages.
        model: the module that is called; may be the result of ``torch.compile``.
        options: of DDP.
        stage: where the run stands; shared with the other replicas.

    Attributes:
        passes: so many backward passes belong to one step in a batch.
        done: how many of them were made.
    """

    def __init__(self, name: str, model: nn.Module, options: DDPOptions, stage: Stage) -> None:
        self.name = name
        self.passes = 1
        self.done = 0
        self._model = model
        self._options = options
        self._stage = stage
        # What the module was called by before: its own forward pass with hooks, or what Module.compile made of it.
        self._before = model._compiled_call_impl
        self._own_call: Callable[..., Any] = self._before or model._call_impl
        self._parameters = dict(users_module(model).named_parameters())
        self._flags = self._read_flags()
        self._shared: dict[str, nn.Parameter] = {}
        self._frozen: list[tuple[str, nn.Parameter]] = []
        self._hooks: list[Any] = []
        self._has_entered = False
        # Whether the next gradients will be exchanged; and whether there may be some that were not.
        self._is_armed = False
        self._is_local = any(parameter.grad is not None for parameter in self._parameters.values())
        # The last backward pass that gave gradients.
        self._noted = -1
        self._make()
        # Not through the module's own __setattr__, which a compiled one passes on.
        object.__setattr__(model, "_compiled_call_impl", self)

    def __reduce__(self) -> tuple[Any, ...]:
        # A class with a __getstate__ of its own may keep the attribute; in the copy it is unset.
        return type(None), ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module, through DDP where its gradients are wanted."""
        if (
            self._stage.is_evaluating
            or not torch.is_grad_enabled()
            # An activation checkpoint computes the forward pass again inside the backward pass.
            or torch._C._current_graph_task_id() != -1
        ):
            return self._own_call(*args, **kwargs)
        self._has_entered = True
        begin = self._stage.begin
        try:
            if begin is None:
                return self._ddp(*args, **kwargs)
            begin()
            output = self._ddp(*args, **kwargs)
            self.arm(*_find_tensors(output))  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            told = self.translate(error)
            if told is error:
                raise
            raise told from error
        return output

    def owns(self) -> set[int]:
        """Give the identities of the model's parameters."""
        return {id(parameter) for parameter in self._parameters.values()}

    def follow(self) -> None:
        """Take in that parameters were frozen, or are trained again; all ranks call it, between two batches.

        A model that is frozen as a whole comes back, as one of the two of a GAN does.
        """
        self._batches += 1
        if self._batches == _WATCHED_BATCHES and not self._options.find_unused_parameters:
            # Where all parameters get a gradient, or none, one of them tells of all.
            self._watch([next(iter(self._shared.values()))])
        flags = self._read_flags()
        if flags == self._flags:
            return
        trained = {name for name, is_trained in zip(self._parameters, flags, strict=True) if is_trained}
        new = trained - self._shared.keys()
        gone = trained and not self._options.find_unused_parameters and self._shared.keys() - trained
        if new or gone:
            self._make()
        self._flags = flags

    def arm(self, *losses: torch.Tensor) -> None:
        """Make ready for a backward pass: gradients are exchanged in it, however they come about, or none of them is.

        Args:
            losses: what it begins at, or goes through.
        """
        options = self._options
        # DDP learns a static graph in its first backward pass, and only if that exchanges gradients; to exchange too
        # early costs time and changes nothing, for the mean of a mean is the same.
        learns = options.static_graph and not self._has_exchanged
        if not (learns or (self._stage.reduces and self.done + 1 >= self.passes)):
            self._is_local = True
        elif options.static_graph and not self._has_entered:
            # The gradients that come now are found to be this rank's alone.
            self._is_armed = False
        elif options.find_unused_parameters or not self._is_armed:
            # An exchange may be under way of which an earlier backward pass has given the first part.
            if self._is_finished():
                self._ddp.reducer.prepare_for_backward(list(losses) if options.find_unused_parameters else [])
            self._is_armed = True

    def check_exchanged(self) -> None:
        """Make sure that this model's gradients are those of all ranks.

        Raises:
            InvalidStateError: some are not.
        """
        self.done = 0
        if self._is_local:
            self._refuse_local()
            self._is_local = False
        try:
            self._ddp.reducer._check_reducer_finalized()
        except RuntimeError as error:
            raise self.translate(error) from error
        late = [name for name, p in self._frozen if p.requires_grad and p.grad is not None]
        if late:
            raise InvalidStateError(
                f"Parameters of model {self.name} were frozen when this batch began and have gradients now, of this "
                f"rank alone: {_named(late)}. Unfreeze parameters between two batches, in "
                "on_training_epoch_start or a callback."
            )

    def translate(self, error: BaseException) -> BaseException:
        """Tell an error of DDP's in the words of trainlab; see ``Parallel.translate``."""
        text = str(error)
        if "Expected to have finished reduction" in text:
            found = re.search(r"did not receive grad for rank \d+: ([\d ]+)", text)
            names = list(self._shared)
            lacking = [names[int(index)] for index in found[1].split()] if found else []
            return InvalidStateError(
                f"Parameters of model {self.name} got no gradient in a backward pass, so that the exchange of "
                f"gradients was not completed{': ' + _named(lacking) if lacking else ''}. Pass "
                f"{self._told_option('find_unused_parameters')}, or freeze them with requires_grad_(False) "
                "before training."
            )
        if "mark a variable ready only once" in text:
            found = re.search(r"Parameter at index (\d+)", text)
            name = list(self._shared)[int(found[1])] if found else "a parameter"
            return InvalidStateError(
                f"{name} of model {self.name} got a second gradient before the first was exchanged. Either two losses "
                "were given to backward one after the other of which the first does not reach all parameters: add "
                f"them and call backward once, or pass {self._told_option('find_unused_parameters')}. Or it "
                "is inside a re-entrant activation checkpoint: pass use_reentrant=False to "
                "torch.utils.checkpoint.checkpoint, or set DDPOptions(static_graph=True)."
            )
        return error

    def release(self) -> None:
        """Give the module back as it was."""
        self._unhook()
        object.__setattr__(self._model, "_compiled_call_impl", self._before)

    # -- inner parts -------------------------------------------------------------------------

    def _make(self) -> None:
        self._unhook()
        flags = self._read_flags()
        options = self._options
        self._shared = {
            name: parameter
            for (name, parameter), is_trained in zip(self._parameters.items(), flags, strict=True)
            if is_trained or (options.find_unused_parameters and name in self._shared)
        }
        self._has_exchanged = False
        self._frozen = [(name, p) for name, p in self._parameters.items() if name not in self._shared]
        kept = [(parameter, parameter.grad) for parameter in self._shared.values()]
        for parameter, _ in kept:
            parameter.grad = None
            parameter.requires_grad_(True)
        self._entry = _Entry(self._model, self._own_call)
        self._ddp = DistributedDataParallel(
            self._entry,
            gradient_as_bucket_view=options.gradient_as_bucket_view,
            static_graph=options.static_graph,
            find_unused_parameters=options.find_unused_parameters,
            bucket_cap_mb=options.bucket_cap_mb,
        )
        # Gradients are exchanged in the backward passes that `arm` makes ready for it, whatever forward passes any rank
        # has made before.
        self._ddp.require_backward_grad_sync = False
        # They are sent once a batch, not in each forward pass, where an earlier one may still need them for backward.
        self._ddp.broadcast_buffers = False
        if not (options.static_graph or options.find_unused_parameters):
            self._pin_buckets()
        for parameter, gradient in kept:
            parameter.grad = gradient
        for parameter, is_trained in zip(self._parameters.values(), flags, strict=True):
            parameter.requires_grad_(is_trained)
        self._watch(list(self._shared.values()))
        self._batches = 0
        self._is_armed = False

    def _pin_buckets(self) -> None:
        """Let DDP lay out its buckets for good, by the order of the parameters alone.

        It does so after its first backward pass, in the order in which that gave gradients; on more than two ranks the
        last bits of a sum depend on the layout, so a resumed run would differ.
        """
        self._entry.call = self._nothing
        self._ddp.reducer.prepare_for_backward([])
        self._ddp().backward()
        self._entry.call = self._own_call
        self._ddp.reducer._rebuild_buckets()
        for parameter in self._shared.values():
            parameter.grad = None

    def _nothing(self) -> torch.Tensor:
        """A loss of 0 that reaches all parameters."""
        parts = users_module(self._model).modules()
        sparse = {id(part.weight) for part in parts if isinstance(part, _SPARSE) and part.sparse}
        sums = []
        for parameter in self._shared.values():
            if id(parameter) in sparse:
                row = torch.zeros(1, dtype=torch.long, device=parameter.device)
                sums.append(nn.functional.embedding(row, parameter, sparse=True).sum() * 0)
            else:
                sums.append(parameter.sum() * 0)
        reals = [part.real if part.is_complex() else part for part in sums]
        return torch.stack([part.to(torch.float32) for part in reals]).sum()

    def _watch(self, parameters: list[nn.Parameter]) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._note_gradient)  # type: ignore[no-untyped-call]
            for parameter in parameters
        ]

    def _note_gradient(self, parameter: torch.Tensor) -> None:
        """Called when a watched parameter has got a gradient; counts once in a backward pass."""
        backward = torch._C._current_graph_task_id()
        if backward == self._noted:
            return
        self._noted = backward
        self.done += 1
        self._has_exchanged |= self._is_armed
        self._is_local = not self._is_armed
        self._is_armed = self._has_entered = False

    def _is_finished(self) -> bool:
        """Tell whether no exchange is under way."""
        try:
            self._ddp.reducer._check_reducer_finalized()
        except RuntimeError:
            return False
        return True

    def _refuse_local(self) -> None:
        gradients = ((name, parameter.grad) for name, parameter in self._parameters.items())
        names = [name for name, g in gradients if g is not None and (g.is_sparse or bool(g.any()))]
        if names:
            again = f", {self.passes} times a batch as backward_passes_per_step says" if self.passes > 1 else ""
            own_way = (
                " With static_graph=True each backward pass needs a forward pass of the model itself before it."
                if self._options.static_graph
                else ""
            )
            if self._stage.begin is not None:
                raise InvalidStateError(
                    f"Gradients of model {self.name} are this rank's alone, so that the ranks' weights would grow "
                    f"apart: {_named(names)}. Call the model itself, and not a method or a part of it, before each "
                    "backward pass; add up losses, and call backward once."
                )
            raise InvalidStateError(
                f"Gradients of model {self.name} are this rank's alone, so that the ranks' weights would grow apart: "
                f"{_named(names)}. Call context.backward(loss){again}, not loss.backward(); with "
                f"aggregation_frequency each model must be in a backward pass of the last batch of a group.{own_way}"
            )

    def _told_option(self, name: str) -> str:
        call = "ddp({})" if self._stage.begin is not None else "parallel_options={}"
        return call.format(f"DDPOptions({name}=True)")

    def _read_flags(self) -> list[bool]:
        return [parameter.requires_grad for parameter in self._parameters.values()]

    def _unhook(self) -> None:
        self._watch([])
        if self._shared:
            self._ddp.reducer._remove_autograd_hooks()


class _Entry(nn.Module):
    """What DDP wraps: the user's module, called as it was before.

    Args:
        model: the module, for its parameters and buffers.
        call: what is called.
    """

    def __init__(self, model: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self.call = call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the user's module."""
        return self.call(*args, **kwargs)


def _named(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
