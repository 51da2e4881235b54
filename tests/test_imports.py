"""Which module of the package imports which, by Python and by Cython: no cycles, and rooms that do not know of others."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1] / "gradclip"  # the sources: a wheel has no .pyx


def name_of(path):
    """The name of the module that a file belongs to; a .pxd belongs to that of its .pyx."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted(path for path in ROOT.rglob("*") if path.suffix in {".py", ".pyx", ".pxd"})
MODULES = {name_of(path) for path in FILES}


def resolved(path, level, module, names):
    """The modules of the package that ``from {level dots}{module} import {names}`` loads."""
    base = module or ""
    if level:
        package = name_of(path).split(".")
        package = package if path.name == "__init__.py" else package[:-1]
        base = ".".join([*package[: len(package) - level + 1], *([module] if module else [])])
    for name in names:
        yield f"{base}.{name}" if f"{base}.{name}" in MODULES else base


def of_python(path):
    """(imported module, whether only when a function is called), for what a .py file imports at run time."""

    def walk(node, lazy):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.ImportFrom):
                yield from ((name, lazy) for name in resolved(path, child.level, child.module, [a.name for a in child.names]))
            elif isinstance(child, ast.Import):
                yield from ((alias.name, lazy) for alias in child.names)
            else:
                yield from walk(child, lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


def of_cython(path):
    """The same of a .pyx or .pxd file, imports and cimports alike: by lines, those of a function being indented."""
    text = re.sub(r'"""(?:.|\n)*?"""|#.*', "", path.read_text(encoding="utf-8"))
    text = re.sub(r"\(([^()]*)\)", lambda found: f"({' '.join(found[1].split())})", text)  # a list of names over several lines
    for line in text.splitlines():
        lazy = line.startswith((" ", "\t"))
        found = re.match(r"\s*from\s+(\.*)([\w.]*)\s+c?import\s+\(?\s*(.*?),?\s*\)?$", line)
        if found:
            names = [name.split()[0] for name in found[3].split(",") if name.strip()]
            yield from ((name, lazy) for name in resolved(path, len(found[1]), found[2], names))
        found = re.match(r"\s*c?import\s+([\w., ]+)$", line)
        if found:
            yield from ((name.split()[0], lazy) for name in found[1].split(","))


def edges():
    """(importing module, imported module, whether only when a function is called), within the package.

    A module also imports the packages that the imported one lies in, but for the outermost, which imports everything, and for
    those that it lies in itself."""
    for path in FILES:
        own = name_of(path)
        for name, lazy in of_python(path) if path.suffix == ".py" else of_cython(path):
            parts = name.split(".")
            for inner in (".".join(parts[:n]) for n in range(2, len(parts) + 1)):
                if inner in MODULES and inner != own and (inner == name or not own.startswith(f"{inner}.")):
                    yield own, inner, lazy


def cycle_in(graph):
    """A cycle of a graph, as the list of its nodes; or None."""
    done, way = set(), []

    def visit(node):
        if node in way:
            return [*way[way.index(node) :], node]
        if node in done:
            return None
        way.append(node)
        found = next(filter(None, map(visit, sorted(graph.get(node, ())))), None)
        way.pop()
        done.add(node)
        return found

    return next(filter(None, map(visit, sorted(graph))), None)


def graph_of(pairs):
    graph = {}
    for a, b in pairs:
        graph.setdefault(a, set()).add(b)
    return graph


def test_no_module_imports_itself_by_way_of_others():
    """Imports inside of functions count like any other: only put off, a cycle stays one."""
    assert cycle_in(graph_of((a, b) for a, b, _ in edges())) is None


def test_the_engine_of_the_host_knows_no_other():
    """The passes know leaves and themselves."""
    known = {b.split(".")[1] for a, b, _ in edges() if a.startswith("gradclip._cpu")}
    assert known == {"_cpu", "_leaves"}


def test_one_module_alone_opens_the_door_to_gpus():
    """By an import in a function, when a first leaf lies on one."""
    outside = {(a, b) for a, b, _ in edges() if b.startswith("gradclip._gpu") and not a.startswith("gradclip._gpu")}
    assert {a for a, b in outside if b == "gradclip._gpu.engine"} == {"gradclip._core.engine"}
    assert all(lazy for a, b, lazy in edges() if (a, b) in outside)


def test_cycles_are_found(tmp_path, monkeypatch):
    """The walk sees imports of both languages, in functions and over several lines."""
    for name, text in {
        "__init__.py": "from . import a",
        "a.py": "def f():\n    from .room import b",
        "room/__init__.py": "",
        "room/b.pyx": "from gradclip.room.c cimport (\n    x,\n    y)",
        "room/c.pxd": "# from gradclip.a cimport z\ncimport gradclip.room.d as d",
        "room/d.pyx": '"""from gradclip.a import z"""\nfrom ..a import f',
    }.items():
        path = tmp_path / "gradclip" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    files = sorted(p for p in tmp_path.rglob("*") if p.suffix)
    monkeypatch.setitem(globals(), "ROOT", tmp_path / "gradclip")
    monkeypatch.setitem(globals(), "FILES", files)
    monkeypatch.setitem(globals(), "MODULES", set(map(name_of, files)))
    way = ["gradclip.a", "gradclip.room.b", "gradclip.room.c", "gradclip.room.d", "gradclip.a"]
    assert cycle_in(graph_of((a, b) for a, b, _ in edges())) == way


def test_no_module_brings_the_code_of_typed_memoryviews():
    typed = re.compile(r"\[[^\]]*::?1\]\s*\w+|<\w+\[:")  # double[::1] view, <double[:4]>pointer
    assert typed.search("cdef const double[:, ::1] number = rows")
    assert [path.name for path in FILES if path.suffix != ".py" and typed.search(path.read_text(encoding="utf-8"))] == []
