# cython: language_level=3, boundscheck=False, wraparound=False
"""A nesting of arrays, walked once: its leaves in order, and everything that follows from where they stand.

The walk keeps a Node for each container and nothing for each leaf. A flat list of arrays, the usual case, needs no walk, and
gets its tree when somebody asks for it. Paths are worked out when a message or a report asks for one. Matching and rebuilding
go through the same nodes: they speak of the nesting as it was walked, and notice where it has changed since."""
from cpython.dict cimport PyDict_CheckExact, PyDict_Keys, PyDict_Values
from cpython.list cimport PyList_CheckExact, PyList_GET_ITEM
from cpython.tuple cimport PyTuple_CheckExact

import re
import sys
import warnings
from collections.abc import Iterator
from fnmatch import translate
from itertools import islice

cimport cython
cimport numpy as cnp

from . import containers
from gradclip._leaves.tensors cimport is_plain_tensor

cnp.import_array()

cdef enum:
    MAX_DEPTH = 200     # far above any model, far below what the C stack holds

cdef dict MODULES = sys.modules
cdef object LIBRARY = None  # CuPy, once somebody has imported it,
cdef object CUPY = None     # and its ndarray


cdef bint is_cupy(object node):
    """Whether something is a CuPy array: not without CuPy, which is never imported here."""
    global LIBRARY, CUPY
    if CUPY is not None and type(node) is CUPY:
        return True
    library = MODULES.get("cupy")
    if library is LIBRARY and (CUPY is not None or library is None):     # what is asked of every leaf takes no longer
        return False
    found = getattr(library, "ndarray", None)
    with cython.critical_section(MODULES):      # without a GIL several threads may find it
        LIBRARY, CUPY = library, found
    return type(node) is found


cdef bint is_lone(object node):
    """Whether something is an array of NumPy or CuPy or a plain tensor: a leaf, by its type alone."""
    return cnp.PyArray_CheckExact(node) or is_cupy(node) or is_plain_tensor(node)


cdef int frames_of_gradclip() except -1:
    """The stack level of the user's line, for a warning."""
    cdef int level = 1
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("gradclip."):
        level += 1
        frame = frame.f_back
    return level


@cython.final
@cython.freelist(16)
cdef class Node:
    """One container of a nesting, as it was when it was walked."""


@cython.final
cdef class Sought:
    """What `Tree.match` looks for in another nesting, and what it found."""


cdef Node node_of(object container, str name):
    """A Node of a container that has not been opened yet; None for what is a leaf. name: of the nesting."""
    cdef Node node
    cdef object kind = None
    if not (PyList_CheckExact(container) or PyDict_CheckExact(container) or PyTuple_CheckExact(container)):
        if cnp.PyArray_Check(container) or is_lone(container):
            return None
        kind = containers.kind_of(container, name == "params")
        if kind is None:
            return None
    node = Node.__new__(Node)
    node.container, node.kind = container, kind
    return node


cdef list items_of(Node node):
    """What a plain list, tuple or dict holds now."""
    return PyDict_Values(node.container) if PyDict_CheckExact(node.container) else list(node.container)


cdef list keys_of(Node node):
    """Return the keys of a container's items; None if they are numbered, or if it changed while it was asked."""
    return None if node.items is None or node.keys is None or len(node.keys) != len(node.items) else node.keys


cdef bint is_by_key(Node node):
    """Whether the items of another container are found by their keys; else by their numbers."""
    return PyDict_CheckExact(node.container) if node.kind is None else node.kind.by_key and node.keys is not None


cdef object outlined(object item):
    """Return a copy of a tree without its containers and leaves, which says what their paths are."""
    cdef Node node, made
    if item is None or type(item) is not Node:
        return item is not None or None
    node, made = <Node>item, Node.__new__(Node)
    made.keys, made.kind = keys_of(node), node.kind
    made.items = [outlined(child) for child in node.items]
    return made


cdef list flat_leaves(object nesting):
    """The leaves of a lone array, or of a plain list, tuple or dict of nothing but arrays of NumPy and CuPy and plain tensors;
    None for any other nesting."""
    cdef list items
    if cnp.PyArray_CheckExact(nesting):
        return [nesting]
    if PyDict_CheckExact(nesting):
        items = PyDict_Values(nesting)
    elif PyList_CheckExact(nesting) or PyTuple_CheckExact(nesting):
        items = list(nesting)
    else:
        return [nesting] if is_lone(nesting) else None
    for item in items:
        if not is_lone(item):
            return None
    return items


cdef Tree flat_tree(object nesting, list leaves, list keys, str name):
    """The tree of a nesting that has `flat_leaves`. keys : those of a dict"""
    cdef Tree tree = Tree.__new__(Tree)
    cdef Node node
    tree.nesting, tree.name, tree.leaves, tree.root = nesting, name, leaves, nesting
    if PyList_CheckExact(nesting) or PyTuple_CheckExact(nesting) or PyDict_CheckExact(nesting):
        node = Node.__new__(Node)
        node.container, node.items, node.keys, tree.root = nesting, leaves, keys, node
    return tree


cdef void let_go(Node node) noexcept:
    """Let a node keep only which places there were, and no container and no leaf: no memory is needed for that."""
    cdef Py_ssize_t i
    cdef list items = node.items
    node.container = None
    for i in range(len(items)):
        item = <object>PyList_GET_ITEM(items, i)
        if type(item) is Node:
            let_go(<Node>item)
        elif item is not None:
            items[i] = True


def places(item, parts=()):
    """Yield everything in a tree in the order of the walk, each as (the keys that lead to it, the item).

    This goes only as far as it is asked for: where the walk found an error, it has not been further."""
    yield parts, item
    if type(item) is Node:
        keys = keys_of(<Node>item)
        for i, child in enumerate((<Node>item).items or ()):
            yield from places(child, (*parts, str(i if keys is None else keys[i])))


def leaf_path(root, name, index):
    """Where the leaf of an index stands; `name` for a lone one."""
    leaves = (parts for parts, item in places(root) if item is not None and type(item) is not Node)
    return "/".join(next(islice(leaves, index, None), ())) or name


@cython.final
@cython.freelist(8)
cdef class Tree:
    """A nesting as it was walked."""

    # ---- the walk ---------------------------------------------------------------------------

    cdef int walk(self, object nesting, str name, bint write, bint anew) except -1:
        """Fill in everything. What ends the walk early is kept as `error`: an error of a leaf that stands before comes first.

        nesting : array or nesting of arrays
        name : what it is called in messages; "params" may be parameters of PyTorch's
        write : whether its leaves are going to be written
        anew : whether `rebuild` is going to make another such nesting
        """
        cdef Node node = None if nesting is None else node_of(nesting, name)
        self.name, self.write, self.anew = name, write, anew
        self.nesting = self.root = nesting
        self.leaves = [] if nesting is None or node is not None else [nesting]
        if node is not None:
            self.root = node
            try:
                self.enter(node, 0)
            except Exception as error:
                self.error = error
        return 0

    cdef int enter(self, Node node, int depth) except -1:
        """Open a container that has its place in the tree, and walk what it holds."""
        cdef Py_ssize_t i = 0, n
        cdef list items
        cdef Node child
        if node.kind is None:
            node.items = items_of(node)     # of which no other thread can take one away
            if PyDict_CheckExact(node.container):
                node.keys = PyDict_Keys(node.container)
        else:
            self.open(node, None)
            self.check_kind(node)
        if depth == MAX_DEPTH:
            raise ValueError(f"{self.name}: nested deeper than {MAX_DEPTH} levels; does a container hold itself?")
        items = node.items
        n = len(items)
        while i < n and cnp.PyArray_CheckExact(<object>PyList_GET_ITEM(items, i)):
            i += 1
        self.leaves += items if i == n else items[:i]
        for i in range(i, n):
            item = items[i]
            if item is None:
                continue
            child = None if cnp.PyArray_CheckExact(item) else node_of(item, self.name)
            if child is None:
                self.leaves.append(item)
            else:
                items[i] = child
                self.enter(child, depth + 1)
        return 0

    cdef int open(self, Node node, tuple parts) except -1:
        """Ask a container that is no plain list, tuple or dict for its items. parts: what leads to it, if that is not in
        this tree."""
        if self.opened_once is None:
            self.opened_once = {}
        found = self.opened_once.get(id(node.container))
        if found is None:
            try:
                items, keys = node.kind.opened(node.container)
            except containers.Refused as error:
                raise TypeError(f"{self.path_to(node) if parts is None else self.joined(parts)}: {error}") from error.__cause__
            except RuntimeError as error:
                self.say_if_changed(self.path_to(node) if parts is None else self.joined(parts), error)
                raise
            found = node.container, items, keys
            if not node.kind.live:
                self.opened_once[id(node.container)] = found
            if not items and isinstance(node.container, Iterator):
                warnings.warn(f"{self.name}: an iterator yielded nothing (was it used up before?)", RuntimeWarning,
                              stacklevel=frames_of_gradclip())
        node.items, node.keys = list(found[1]), found[2]
        return 0

    def check_kind(self, Node node):
        """Refuse a container that cannot hold what is going to be written or, if `rebuild` is meant, cannot be made again."""
        try:
            if self.write:
                node.kind.check_holds(node.container, node.items)
            if self.anew:
                node.kind.check_like(node.container, node.items)
        except containers.Refused as error:
            raise TypeError(f"{self.path_to(node)}: {error}") from error.__cause__
        except (KeyError, RuntimeError) as error:
            self.say_if_changed(self.path_to(node), error)
            raise

    # ---- paths ------------------------------------------------------------------------------

    def path(self, Py_ssize_t index, str name=None):
        """Where the leaf of this index stands: ``layers/3/weight``; a lone one is called by a name, that of the nesting."""
        return leaf_path(self.root, name or self.name, index)

    def path_to(self, node):
        """Where a container stands."""
        return self.joined(next(parts for parts, item in places(self.root) if item is node))

    def paths(self, bint nones=False):
        """The paths of all leaves; with `nones`, also where None stands."""
        cdef list found = []
        for parts, item in places(self.root):
            if type(item) is Node:
                self.check_unchanged(<Node>item)
            elif nones or item is not None:
                found.append(self.joined(parts))
        return found

    def naming(self):
        """A function from the index of a leaf to its path, which keeps no leaf alive."""
        root, name = outlined(self.root), self.name
        return lambda index: leaf_path(root, name, index)

    cdef void release(self) noexcept:
        """Let go of the nesting and its leaves, after the last use of this but for paths."""
        if type(self.root) is Node:
            let_go(<Node>self.root)
        elif self.root is not None:
            self.root = True
        self.count = self.size()
        self.nesting = self.leaves = self.opened_once = None

    cdef Py_ssize_t size(self) noexcept:
        """How many leaves there are."""
        return self.count if self.leaves is None else len(self.leaves)

    def all_paths(self):
        """The paths of all leaves, also when these have been let go of."""
        return [self.joined(parts) for parts, item in places(self.root) if item is not None and type(item) is not Node]

    # ---- a nesting that changes -------------------------------------------------------------

    cdef int check_unchanged(self, Node node) except -1:
        """Raise a RuntimeError if a container holds something else than when it was walked, as far as it can be asked again."""
        cdef Py_ssize_t i, n
        cdef list now, then = node.items
        if PyTuple_CheckExact(node.container) or not (node.kind is None or node.kind.live):
            return 0
        try:
            now = items_of(node) if node.kind is None else node.kind.opened(node.container)[0]
        except RuntimeError as error:
            self.say_if_changed(self.path_to(node), error)
            raise
        n = min(len(now), len(then))
        for i in range(n):
            item = then[i]
            if now[i] is not ((<Node>item).container if type(item) is Node else item):
                n = i
                break
        if n < len(now) or n < len(then):
            self.refuse_change(node, n)
        return 0

    def refuse_change(self, Node node, Py_ssize_t index):
        """Raise the RuntimeError that names the item of a container that was replaced during the call."""
        parts = next(parts for parts, item in places(self.root) if item is node)
        names = list(node.container)[index : index + 1] if isinstance(node.container, dict) else [index]
        raise RuntimeError(f"{'/'.join((*parts, *map(str, names))) or self.name}: {self.name} changed during the call")

    def say_if_changed(self, str path, error, str name=None):
        """Raise a RuntimeError that names a container, if an error says that it was changed while it was asked for its items.

        A KeyError says so: a mapping has lost a key that it named. name: of the nesting, if it is not this one."""
        if isinstance(error, KeyError) or "during iteration" in str(error):
            raise RuntimeError(f"{path}: {name or self.name} changed during the call") from error

    # ---- matching ---------------------------------------------------------------------------

    def match(self, other, str name, bint spare=False, bint write=False):
        """Return what another nesting has in the places of the leaves, in order, dicts matched by key.

        Where the two are nested in different ways, this is a ValueError that names the path.

        Parameters
        ----------
        other : nesting of anything
        name : what it is called in messages
        spare : whether it may have something where this one has None
        write : whether what it holds is going to be written
        """
        cdef Sought sought = Sought.__new__(Sought)
        sought.name, sought.spare, sought.write, sought.found = name, spare, write, []
        self.match_item(self.root, other, (), sought)
        return sought.found

    def match_patterns(self, list patterns, str name):
        """Return, for each leaf, the index of the first of some patterns that matches its whole path, or None.

        Patterns are shell-style; ``*`` matches ``/`` too. One that matches no path, those of None included, is a ValueError."""
        matchers = [re.compile(translate(pattern)).match for pattern in patterns]
        everything = self.paths(True)
        for pattern, match in zip(patterns, matchers):
            if everything and not any(map(match, everything)):
                some = ", ".join(everything[:5]) + (", ..." if len(everything) > 5 else "")
                raise ValueError(f"{name} has the pattern {pattern!r}, which matches no path in {self.name}: {some}")
        return [next((i for i, match in enumerate(matchers) if match(path)), None) for path in self.paths()]

    cdef int match_item(self, object mine, object other, tuple parts, Sought sought) except -1:
        """Match one item with another."""
        cdef Node theirs
        if mine is None and (other is None or sought.spare or sought.name == "params"):     # of a frozen layer: no gradient
            return 0
        theirs = None if other is None else node_of(other, sought.name)
        if theirs is not None:
            self.open_other(theirs, parts, sought)
        if mine is None or other is None or (type(mine) is Node) != (theirs is not None):
            raise ValueError(f"{self.joined(parts)}: {self.name} and {sought.name} are nested in different ways")
        if theirs is None:
            sought.found.append(other)
            return 0
        self.check_unchanged(<Node>mine)
        if is_by_key(<Node>mine) != is_by_key(theirs):
            raise ValueError(f"{self.joined(parts)}: {self.name} is a {type((<Node>mine).container).__name__}, "
                             f"{sought.name} a {type(other).__name__}")
        if is_by_key(theirs):
            return self.match_by_key(<Node>mine, theirs, parts, sought)
        return self.match_by_number(<Node>mine, theirs, parts, sought)

    cdef int open_other(self, Node node, tuple parts, Sought sought) except -1:
        """Ask a container of the other nesting for its items."""
        if PyDict_CheckExact(node.container):
            held = dict(node.container)     # keys and values of one moment
            node.items, node.keys = list(held.values()), list(held)
        elif node.kind is None:
            node.items = items_of(node)
        else:
            self.open(node, parts)
            if sought.write:
                try:
                    node.kind.check_holds(node.container, node.items)
                except containers.Refused as error:
                    raise TypeError(f"{self.joined(parts)}: {error}") from error.__cause__
                except (KeyError, RuntimeError) as error:
                    self.say_if_changed(self.joined(parts), error, sought.name)
                    raise
        return 0

    cdef int match_by_number(self, Node mine, Node theirs, tuple parts, Sought sought) except -1:
        """Match two containers whose items are in the same order."""
        cdef Py_ssize_t i, n = len(mine.items)
        if n != len(theirs.items):
            raise ValueError(f"{self.joined(parts)}: {self.name} has {n} entries, {sought.name} has {len(theirs.items)}")
        for i in range(n):
            if is_lone(theirs.items[i]) and is_lone(mine.items[i]):
                sought.found.append(theirs.items[i])
            else:
                self.match_item(mine.items[i], theirs.items[i], (*parts, str(i)), sought)
        return 0

    cdef int match_by_key(self, Node mine, Node theirs, tuple parts, Sought sought) except -1:
        """Match two containers whose items have the same keys."""
        cdef list keys = keys_of(mine)
        cdef dict others = dict(zip(theirs.keys, theirs.items))
        if keys is None:
            self.refuse_change(mine, 0)
        for key in keys:
            if key not in others:
                raise ValueError(f"{self.joined((*parts, str(key)))}: {sought.name} has no such entry")
        mine_too = set(keys)
        if len(others) > len(mine_too):
            key = next(key for key in others if key not in mine_too)
            raise ValueError(f"{self.joined((*parts, str(key)))}: {sought.name} has an entry that {self.name} has not")
        for key, item in zip(keys, mine.items):
            other = others[key]
            if is_lone(other) and is_lone(item):
                sought.found.append(other)
            else:
                self.match_item(item, other, (*parts, str(key)), sought)
        return 0

    cdef str joined(self, tuple parts):
        """What leads to an item, as a path."""
        return "/".join(parts) or self.name

    # ---- another nesting like it ------------------------------------------------------------

    def rebuild(self, list leaves):
        """The same nesting with other leaves."""
        cdef Py_ssize_t position = 0
        return self.made_anew(self.root, leaves, &position)

    cdef object made_anew(self, object item, list leaves, Py_ssize_t *position):
        """Return one item of the nesting with other leaves, of which the next to be used is number `position`."""
        cdef Node node
        cdef list items = []
        if item is None:
            return None
        if type(item) is not Node:
            position[0] += 1
            return leaves[position[0] - 1]
        node = <Node>item
        self.check_unchanged(node)
        for child in node.items:
            items.append(self.made_anew(child, leaves, position))
        if PyList_CheckExact(node.container):
            return items
        if PyTuple_CheckExact(node.container):
            return tuple(items)
        if node.kind is None:
            keys = keys_of(node)
            if keys is None:
                self.refuse_change(node, 0)
            return dict(zip(keys, items))
        try:
            return node.kind.like(node.container, items)
        except Exception as error:
            name = containers.type_name(node.container)
            raise TypeError(f"{self.path_to(node)}: a {name} cannot be made of other items ({error})") from error
