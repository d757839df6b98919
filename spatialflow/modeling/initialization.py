"""Draw each parameter's initial value from the seed and the parameter's name alone.

Modules draw their initial values from one global generator, in the order in which they are built.
One more flow in a genotype then changes the values of every module that is built after it. Two
networks are a fair pair only if what they share starts equal, so the values are drawn again by
name. The distribution of each parameter stays the same. A relation between parameters, as of a
parameter that is made as a copy of another one, does not.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from spatialflow.utils.randomness import mix_seeds

OVERWRITING = {"zero_", "fill_", "copy_"}
"""Operations in place that replace all values of a tensor, beside those that draw."""


@dataclass(frozen=True, slots=True)
class _Step:
    """One operation that wrote random numbers, or results of random numbers.

    Attributes:
        number: Position among all steps.
        call: Operation, its arguments and its keyword arguments.
        written: Storages that it wrote, in the order of its results.
        sources: Storage of an argument → the steps that had led to its content.
    """

    number: int
    call: tuple[Any, tuple[Any, ...], dict[str, Any]]
    written: tuple[int, ...]
    sources: Mapping[int, tuple[_Step, ...]]


class RandomTape(TorchDispatchMode):
    """Records how tensors get random values while modules are built, to repeat it with new numbers.

    ::

        with RandomTape() as tape:
            head = build_head()
        tape.draw_again({"head": head}, seed=3)

    A tensor that is overwritten afterwards, by zeros or by pretrained weights, is not random. The
    tape keeps the tensors that random numbers went through, so it should live no longer than the
    building of the modules.
    """

    def __init__(self) -> None:
        """Start with an empty record."""
        super().__init__()
        self._numbers = itertools.count()
        # The weak reference keeps the number of a freed storage from being given to another one.
        self._records: dict[int, tuple[StorageWeakRef, tuple[_Step, ...]]] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation, and record it if it draws or reads random numbers."""
        kwargs = kwargs or {}
        mutated = _mutated(func, args, kwargs)
        draws = torch.Tag.nondeterministic_seeded in func.tags
        replaced = {
            _storage(x)
            for x in mutated
            if (draws or func.overloadpacket.__name__ in OVERWRITING) and _fills_storage(x)
        }
        sources = {
            key: self._records[key][1]
            for key in map(_storage, _tensors((args, kwargs)))
            if key in self._records and key not in replaced
        }
        result = func(*args, **kwargs)
        if draws or sources:
            written = mutated or ([] if _is_view(func) else _tensors(result))
            call = (func, args, kwargs)
            step = _Step(next(self._numbers), call, tuple(map(_storage, written)), sources)
            for tensor in written:
                before = sources.get(_storage(tensor), ())
                reference = StorageWeakRef(tensor.untyped_storage())
                self._records[_storage(tensor)] = reference, (*before, step)
        else:
            for key in replaced:
                self._records.pop(key, None)
        return result

    def draw_again(self, modules: Mapping[str, nn.Module], seed: int) -> None:
        """Give the random parameters of modules new values, from the same distributions.

        The state of PyTorch's global generator stays as it is.

        Args:
            modules: Prefix of the names of a module's parameters → module, built within the tape.
            seed: Seed, 0 or more. A parameter's values are a function of the seed, the parameter's
                name, its shape and its distribution.
        """
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for name, parameter in _named(modules):
                _, steps = self._records.get(_storage(parameter), (None, ()))
                if steps:
                    digest = hashlib.sha256(name.encode()).digest()
                    own = mix_seeds(seed, int.from_bytes(digest[:8], "big"))
                    torch.random.default_generator.manual_seed(own)
                    parameter.copy_(_repeat(parameter, steps))


def _repeat(tensor: Tensor, steps: Sequence[_Step]) -> Tensor:
    """Run the steps of a tensor's storage again on copies, and return the tensor's new values."""
    # What no step writes, as where a part of a tensor is random, keeps its value.
    copies = {_storage(tensor): _flat(tensor).clone()}

    def copied(x: Tensor) -> Tensor:
        flat = copies.get(_storage(x))
        return x if flat is None else flat.as_strided(x.size(), x.stride(), x.storage_offset())

    # In the order in which they were recorded: a source may have changed between two readers.
    for _, step in sorted(_with_sources(steps).items()):
        func, args, kwargs = step.call
        mutated = _mutated(func, args, kwargs)
        for x in mutated:
            copies.setdefault(_storage(x), _flat(x).clone())
        result = func(*tree_map_only(Tensor, copied, args), **tree_map_only(Tensor, copied, kwargs))
        if not mutated:
            copies.update(zip(step.written, map(_flat, _tensors(result)), strict=True))
    return copied(tensor)


def _with_sources(steps: Sequence[_Step]) -> dict[int, _Step]:
    """Return all steps that led to some steps, themselves included, by their numbers."""
    found: dict[int, _Step] = {}
    waiting = list(steps)
    while waiting:
        step = waiting.pop()
        if step.number not in found:
            found[step.number] = step
            waiting.extend(itertools.chain.from_iterable(step.sources.values()))
    return found


def _named(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the name and the parameter of each parameter; a shared one has its first name."""
    seen: set[int] = set()
    named = (m.named_parameters(prefix=prefix) for prefix, m in modules.items())
    for name, parameter in itertools.chain.from_iterable(named):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            yield name, parameter


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _mutated(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the arguments that an operation changes in place."""
    changed = _changed_arguments(func)
    return _tensors([args[i] if i < len(args) else kwargs.get(name) for i, name in changed])


@functools.cache
def _changed_arguments(func: Any) -> tuple[tuple[int, str], ...]:
    """Return position and name of each argument that an operation changes in place."""
    return tuple(
        (i, argument.name)
        for i, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


@functools.cache
def _is_view(func: Any) -> bool:
    """Return whether an operation returns its argument's storage without writing to it."""
    return any(returned.alias_info is not None for returned in func._schema.returns)


def _storage(tensor: Tensor) -> int:
    """Return the number of a tensor's storage; views share one."""
    return int(tensor.untyped_storage()._cdata)


def _fills_storage(tensor: Tensor) -> bool:
    """Return whether a tensor's elements are all that its storage holds."""
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


def _flat(tensor: Tensor) -> Tensor:
    """Return all elements of a tensor's storage, in one dimension."""
    storage = tensor.untyped_storage()
    elements = storage.nbytes() // tensor.element_size()
    return tensor.detach().as_strided((elements,), (1,), 0)
