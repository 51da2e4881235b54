"""The kinds of containers besides plain lists, tuples and dicts: how one is opened, and how another one like it is made.

A kind answers four questions: what does a container hold and what are its items called (`opened`), does it really hold them, so
that they can be written (`check_holds`), can another one be made (`check_like`), and make it (`like`)."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, MappingView
from typing import Any, TypeVar

import numpy as np

from . import pytree
from .foreign import TREES, is_array, type_name
from .pytorch import holds_weights, is_tensor, is_tensor_type

Container = TypeVar("Container")
Opened = tuple[list[Any], "list[Any] | None"]  # items, and what they are called


class Refused(TypeError):
    """A container that cannot be used, in words to which its place in the nesting is added."""


class Kind:
    """Containers of one kind.

    by_key : whether items are found by their keys in another nesting; else by their numbers
    live : whether a container may be asked again later, and gives the same objects as long as it did not change
    """

    by_key = False
    live = False

    def opened(self, container: Any) -> Opened:
        """The items of a container, and their keys or None."""
        return list(container), None

    def like(self, container: Any, items: list[Any]) -> Any:
        """A container of the same type with other items."""
        return type(container)(items)

    def check_holds(self, container: Any, items: list[Any]) -> None:
        """Refuse a container that gives other objects each time it is asked: what is written to them is lost."""
        again = self.asked_again(container)
        if len(again) != len(items) or not all(map(_is_same_memory, again, items)):
            raise Refused(f"{type(container).__name__} makes its values anew, so none can be written in place")

    def asked_again(self, container: Any) -> list[Any]:
        """The items of a container, by another way than that of `opened` if there is one."""
        return self.opened(container)[0]

    def check_like(self, container: Any, items: list[Any]) -> None:
        """Refuse a container if `like` cannot make another one: tried with the items that it has."""
        name = type_name(container)
        try:
            made = self.like(container, list(items))
            is_another = type(made) is type(container) and (made is not container or not items)
            found = self.opened(made)[0] if is_another else []
            is_another = is_another and len(found) == len(items) and self.holds_alike(found, items)
        except Exception as error:
            raise Refused(f"a {name} cannot be made of other items ({error}); {TREES}") from error
        if not is_another:
            raise Refused(f"a {name} cannot be made of other items; {TREES}")

    def holds_alike(self, found: list[Any], items: list[Any]) -> bool:
        """Whether a container holds what it was made of."""
        return all(map(_is_same, found, items))


class Sequences(Kind):
    """Lists and tuples of other types than the plain ones, named tuples among them."""

    live = True

    def opened(self, container: Any) -> Opened:
        items = list(container)
        fields = getattr(container, "_fields", None) if isinstance(container, tuple) else None
        # a named tuple may have other items than it should
        return items, list(fields) if fields is not None and len(fields) == len(items) else None

    def like(self, container: Any, items: list[Any]) -> Any:
        if isinstance(container, tuple) and hasattr(container, "_fields"):
            return container._make(items)  # type: ignore[attr-defined]
        return type(container)(items)


class Mappings(Kind):
    """Mappings that are no dicts. An opened .npz file becomes a dict."""

    by_key = True

    def opened(self, container: Any) -> Opened:
        return list(container.values()), list(container)

    def like(self, container: Any, items: list[Any]) -> Any:
        pairs = dict(zip(container, items, strict=True))
        return pairs if isinstance(container, np.lib.npyio.NpzFile) else type(container)(pairs)

    def asked_again(self, container: Any) -> list[Any]:
        return [container[key] for key in container]

    def check_like(self, container: Any, items: list[Any]) -> None:
        if not isinstance(container, np.lib.npyio.NpzFile):
            super().check_like(container, items)


class Dicts(Mappings):
    """Dicts of other types than the plain one. What else they know is kept: the factory of a defaultdict."""

    live = True

    def like(self, container: Any, items: list[Any]) -> Any:
        result = copy.copy(container)
        result.update(dict(zip(container, items, strict=True)))
        return result


class Iterables(Kind):
    """What is ordered and can be iterated. What only hands out its items (an iterator, a view of a dict) becomes a list."""

    def like(self, container: Any, items: list[Any]) -> Any:
        if isinstance(container, Iterator | MappingView):
            return items
        return type(container)(items, container.maxlen) if isinstance(container, deque) else type(container)(items)

    def check_holds(self, container: Any, items: list[Any]) -> None:
        if not isinstance(container, Iterator):
            super().check_holds(container, items)

    def check_like(self, container: Any, items: list[Any]) -> None:
        if not isinstance(container, Iterator | MappingView):
            super().check_like(container, items)


class Registered(Kind):
    """Containers of one type that somebody registered: with `register_container`, or with JAX."""

    by_key = True  # where `flatten` gives keys

    def __init__(self, flatten: Callable[[Any], Any], rebuild: Callable[[Any, list[Any]], Any]):
        self.flatten, self.rebuild = flatten, rebuild

    def opened(self, container: Any) -> Opened:
        name = type_name(container)
        try:
            given = self.flatten(container)
            if not isinstance(given, tuple) or len(given) != 2 or given[0] is None or any(map(_is_no_list, given)):
                raise TypeError(f"it must return (children, keys or None), not {given!r:.80}")
            children = list(given[0])
            keys = None if given[1] is None else list(given[1])
            if keys is not None and len(keys) != len(children):
                raise ValueError(f"it returned {len(children)} children and {len(keys)} keys")
            if keys is not None and len(set(map(str, keys))) != len(keys):
                raise ValueError(f"it returned a key twice: {keys!r:.80}")
        except Exception as error:
            raise Refused(f"flatten failed for a {name} ({error})") from error
        return children, keys

    def like(self, container: Any, items: list[Any]) -> Any:
        made = self.rebuild(container, list(items))
        if type(made) is not type(container):
            raise TypeError(f"rebuild returned a {type_name(made)}")
        return made

    def holds_alike(self, found: list[Any], items: list[Any]) -> bool:
        # Not the objects themselves: children may be views of one array, of which there is another. But none may have moved.
        numbers = {id(item): i for i, item in enumerate(items)}
        moved = any(numbers.get(id(item), i) != i and items[i] is not item for i, item in enumerate(found))
        return not moved and all(map(_is_alike, found, items))


_SEQUENCES, _MAPPINGS, _DICTS, _ITERABLES = Sequences(), Mappings(), Dicts(), Iterables()
_JAX = Registered(pytree.flatten, pytree.rebuild)
_registered: dict[type, Registered] = {}


def kind_of(node: Any, weights: bool = False) -> Kind | None:  # noqa: PLR0911 -- one line for each kind
    """Return the kind of a container that is no plain list, tuple or dict; None for a leaf.

    weights : whether parameters of PyTorch's are meant, and modules that hold them may be opened
    """
    found = _registered.get(type(node))
    if found is not None:
        return found
    if is_tensor(node):
        return None
    if pytree.is_node(node):
        return _JAX
    if isinstance(node, list | tuple):
        return _SEQUENCES
    if isinstance(node, str) or is_array(node) or (holds_weights(node) and not weights):
        return None
    if isinstance(node, dict):
        return _DICTS
    if isinstance(node, Mapping):
        return _MAPPINGS
    if isinstance(node, Iterable) and not isinstance(node, set | frozenset):
        return _ITERABLES
    return None


def is_nesting(node: Any) -> bool:
    """Whether something is a container that stands for its items: a list, a tuple, or of a registered type."""
    return isinstance(node, list | tuple) or type(node) in _registered or pytree.is_node(node)


def register_container(
    type: type[Container],
    flatten: Callable[[Container], tuple[Iterable[Any], Iterable[Hashable] | None]],
    rebuild: Callable[[Container, list[Any]], Container],
) -> None:
    """Make a container of your own a nesting, like a list or a dict.

    Parameters
    ----------
    type : type
        The type itself; types derived from it are registered on their own.
    flatten : callable
        ``flatten(container)`` returns ``(children, keys)``: the arrays, containers and None that it holds, and what they are
        called in paths, or None where they are numbered. Children are asked for more than once in a call. To be clipped in
        place, they must be the same objects each time, or NumPy's views of the same memory.
    rebuild : callable
        ``rebuild(container, children)`` returns another container of this type, with a list of other children in the order of
        `flatten`. Functional forms call it, and once before anything is read, with the children that the container has.

    Raises
    ------
    TypeError
        `type` is no type, or one of the functions cannot be called.
    ValueError
        The type is registered already, or one that gradclip knows: a list, tuple, dict or array.

    Notes
    -----
    Other nestings (`out`, `params`, thresholds) match a container with keys by these: another one, or a dict.
    Types that are registered with JAX need no registration where JAX is loaded.

    Examples
    --------
    >>> import dataclasses, numpy as np, gradclip
    >>> @dataclasses.dataclass
    ... class Layer:
    ...     weight: np.ndarray
    ...     bias: np.ndarray | None = None
    >>> gradclip.register_container(
    ...     Layer,
    ...     lambda layer: ([layer.weight, layer.bias], ["weight", "bias"]),
    ...     lambda layer, children: Layer(*children),
    ... )
    >>> grads = {"head": Layer(np.array([3.0, 4.0]))}
    >>> clipped, report = gradclip.clip_by_global_norm(grads, 1.0)
    >>> clipped
    {'head': Layer(weight=array([0.6, 0.8]), bias=None)}
    >>> gradclip.clip_by_norm_(grads, {"*/weight": 2.5}).scales
    array([0.5])
    """
    if not isinstance(type, _TYPE):
        raise TypeError(f"type must be a type, not {type!r:.80}")
    for name, function in (("flatten", flatten), ("rebuild", rebuild)):
        if not callable(function):
            raise TypeError(f"{name} must be callable, not {function!r:.80}")
    if type in _KNOWN or issubclass(type, _SCALARS) or _is_array_type(type):
        raise ValueError(f"{type.__module__}.{type.__qualname__} is known already, and cannot be registered")
    if _registered.setdefault(type, made := Registered(flatten, rebuild)) is not made:
        raise ValueError(f"{type.__module__}.{type.__qualname__} is registered already")


def _is_array_type(cls: Any) -> bool:
    """Whether objects of a type are arrays or tensors of a library, which need not be loaded."""
    cupys = any(c.__name__ == "ndarray" and c.__module__.partition(".")[0] == "cupy" for c in cls.__mro__)
    return issubclass(cls, np.ndarray) or is_tensor_type(cls) or cupys


_KNOWN = (list, tuple, dict, set, frozenset, object, type, type(None))
_SCALARS = (np.generic, int, float, complex, str, bytes, bytearray, memoryview)
_TYPE = type  # which `register_container` has another of


def _is_no_list(given: Any) -> bool:
    """Whether something was given for children or keys that is no list of them, though it may be iterable."""
    if given is None:
        return False
    return isinstance(given, str | bytes | Mapping) or is_array(given) or not isinstance(given, Iterable)


def _is_same(found: Any, item: Any) -> bool:
    """Whether a container holds what it was made of: the object itself, or a mapping that it makes anew each time."""
    return found is item or (type(found) is type(item) and isinstance(item, Mapping))


def _is_same_memory(a: Any, b: Any) -> bool:
    """Whether what is written to one array is in the other one: the array itself, or another view of the same."""
    if a is b:
        return True
    if not (type(a) is type(b) is np.ndarray):
        return False
    return (a.ctypes.data, a.shape, a.strides, a.dtype) == (b.ctypes.data, b.shape, b.strides, b.dtype)


def _is_alike(a: Any, b: Any) -> bool:
    """Whether something can stand for another object in a container: of its type, and as large."""
    return a is b or (type(a) is type(b) and all(getattr(a, n, None) == getattr(b, n, None) for n in ("shape", "dtype")))
