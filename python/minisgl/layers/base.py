"""What layers and the blocks made of them have in common: tensors under names, read and written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch

from minisgl._native import InputError

_Op = TypeVar("_Op", bound="BaseOP")


@dataclass(frozen=True)
class _Entry:
    """A tensor's place: the attribute of an operation, and what a checkpoint calls it."""

    owner: BaseOP
    attribute: str
    key: str
    parts: tuple[str, ...]  # of a merged layer: the names of what a checkpoint stores apart


class BaseOP:
    """An operation whose tensors are its attributes, and those of operations among its attributes.

    Tensors are ordinary ones and may be filled and assigned. Attributes that begin with "_" are
    left out. Lists, tuples and dicts of operations count, members by number ("layers.0.weight")
    or key.
    """

    packed_modules_mapping: ClassVar[Mapping[str, Sequence[str]]] = {
        "qkv_proj": ("q_proj", "k_proj", "v_proj"),
        "gate_up_proj": ("gate_proj", "up_proj"),
    }
    """Attributes that are merged layers, and the names of their parts in checkpoints."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the operation does; calling it does the same."""
        raise NotImplementedError

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See forward."""
        return self.forward(*args, **kwargs)

    def state_dict(self, *, prefix: str = "") -> dict[str, torch.Tensor]:
        """This rank's own tensors by name, not copies of them; names begin with "prefix."."""
        return {entry.key: getattr(entry.owner, entry.attribute) for entry in self._entries(prefix)}

    def full_state_dict(self, *, prefix: str = "") -> dict[str, torch.Tensor]:
        """The whole model's tensors by name, gathered from all ranks, which call this together.

        load_state_dict takes them, on any number of ranks.
        """
        return {
            entry.key: entry.owner._gather_tensor(entry.attribute)
            for entry in self._entries(prefix)
        }

    def load_state_dict(
        self, state_dict: Mapping[str, torch.Tensor | Sequence[torch.Tensor]], *, prefix: str = ""
    ) -> None:
        """Copies the whole model's tensors in; each layer keeps its rank's slices.

        A merged layer's entry is one tensor with the parts along dimension 0, or a list of the
        parts; where packed_modules_mapping names them, they may also be entries of their own
        ("q_proj.weight", "k_proj.weight", "v_proj.weight" for "qkv_proj.weight"). Only names that
        begin with "prefix." are read. Values take the dtype and device of the layer's tensors;
        those on the meta device are made on the device of what is loaded. Raises InputError, before
        anything is changed, for a name that is missing or unknown and for a wrong shape.
        """
        found: list[tuple[_Entry, torch.Tensor | Sequence[torch.Tensor]]] = []
        read: set[str] = set()
        for entry in self._entries(prefix):
            if entry.key in state_dict:
                found.append((entry, state_dict[entry.key]))
                read.add(entry.key)
            elif entry.parts and all(part in state_dict for part in entry.parts):
                found.append((entry, [_single(part, state_dict[part]) for part in entry.parts]))
                read.update(entry.parts)
            else:
                apart = f", nor {', '.join(entry.parts)}" if entry.parts else ""
                raise InputError(f"the state dict has no {entry.key}{apart}")
        begin = f"{prefix}." if prefix else ""
        unknown = [key for key in state_dict if key.startswith(begin) and key not in read]
        if unknown:
            raise InputError(
                f"the state dict has names that nothing here has: {', '.join(unknown)}"
            )
        for entry, value in found:
            entry.owner._check_tensor(entry.attribute, entry.key, value)
        for entry, value in found:
            entry.owner._load_tensor(entry.attribute, value)

    def to(self: _Op, *args: Any, **kwargs: Any) -> _Op:
        """Moves all tensors as torch.Tensor.to does, floating-point ones to the dtype, too.

        Returns the operation itself, whose tensors are new ones where something changed. Operations
        that share a tensor share the new one.
        """
        sharing: dict[int, list[_Entry]] = {}
        for entry in self._entries(""):
            sharing.setdefault(id(getattr(entry.owner, entry.attribute)), []).append(entry)
        with torch.inference_mode(False), torch.no_grad():
            for entries in sharing.values():
                tensor: torch.Tensor = getattr(entries[0].owner, entries[0].attribute)
                moved = tensor.to(*args, **kwargs)
                if not tensor.is_floating_point():
                    moved = tensor.to(moved.device)
                for entry in entries:
                    setattr(entry.owner, entry.attribute, moved)
        return self

    def _entries(self, prefix: str, packed: Sequence[str] = ()) -> Iterator[_Entry]:
        for name, value in vars(self).items():
            if name.startswith("_"):
                continue
            if isinstance(value, torch.Tensor):
                yield _Entry(self, name, _join(prefix, name), tuple(_join(p, name) for p in packed))
            elif isinstance(value, BaseOP):
                parts = self.packed_modules_mapping.get(name, ())
                yield from value._entries(_join(prefix, name), [_join(prefix, p) for p in parts])
            elif isinstance(value, (list, tuple, dict)):
                members = value.items() if isinstance(value, dict) else enumerate(value)
                for key, member in members:
                    if isinstance(member, BaseOP):
                        yield from member._entries(_join(prefix, f"{name}.{key}"))

    def _check_tensor(
        self, attribute: str, key: str, value: torch.Tensor | Sequence[torch.Tensor]
    ) -> None:
        """Raises InputError where `value` is not the whole tensor of `attribute`."""
        tensor = _single(key, value)
        wanted = getattr(self, attribute).shape
        if tensor.shape != wanted:
            raise InputError(f"{key} must be {list(wanted)}, got {list(tensor.shape)}")

    def _load_tensor(self, attribute: str, value: torch.Tensor | Sequence[torch.Tensor]) -> None:
        assert isinstance(value, torch.Tensor)
        with torch.no_grad():
            self._writable(attribute, value.device).copy_(value)

    def _gather_tensor(self, attribute: str) -> torch.Tensor:
        tensor: torch.Tensor = getattr(self, attribute)
        return tensor

    def _writable(self, attribute: str, device: torch.device) -> torch.Tensor:
        """The tensor; on `device` where it has no memory yet."""
        tensor: torch.Tensor = getattr(self, attribute)
        if tensor.is_meta:
            with torch.inference_mode(False):
                tensor = torch.empty_like(tensor, device=device)
            setattr(self, attribute, tensor)
        return tensor


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _single(key: str, value: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{key} must be a torch.Tensor, got {type(value).__name__}")
    return value
