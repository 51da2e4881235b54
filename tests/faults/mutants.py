"""Change one thing in the decision logic, `gradclip/_core`, and look whether a test notices: mutation testing.

    python tests/faults/mutants.py --seed 1 --count 100
    python tests/faults/mutants.py --module dyadic

A mutant is a module in which one comparison, operator, number, truth value or condition is another one. Each is run in a fork
by the fast tests that MODULES names, until the first of them fails; one that takes too long counts as noticed. The survivors
are printed. Those for which tests/faults/survivors.txt gives a reason are left out."""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib.abc
import importlib.util
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "gradclip" / "_core"
REASONS = Path(__file__).with_name("survivors.txt")
CPU = 60  # seconds of one mutant

COMPARE = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
BINARY = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Add,
    ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
EXACT = ["tests/test_strict.py", "tests/test_skip_above.py", "tests/test_mixed_precision.py", "tests/test_update.py"]
MODULES = {
    "arguments": ["tests/test_norm.py", "tests/test_value.py", "tests/test_thresholds.py", "tests/test_suggest.py"],
    "by_leaf": ["tests/test_norm.py", "tests/test_value.py", "tests/test_adaptive.py", "tests/test_per_leaf.py"],
    "chi": ["tests/test_thresholds.py", "tests/test_suggest.py"],
    "decide": ["tests/test_norm.py", *EXACT, "tests/test_measure.py", "tests/test_per_sample.py"],
    "dyadic": [*EXACT, "tests/test_exactness.py", "tests/test_engine.py"],
    "groups": ["tests/test_groups.py", "tests/test_norm.py"],
    "leaf_table": ["tests/test_leaf_table.py"],
    "options": ["tests/test_norm.py", "tests/test_skip_above.py", "tests/test_groups.py", "tests/test_per_sample.py"],
    "ranked": ["tests/test_thresholds.py", "tests/test_private_quantile.py"],
    "rounding": [*EXACT, "tests/test_exactness.py", "tests/test_engine.py"],
    "samples": ["tests/test_per_sample.py", "tests/test_per_sample_parts.py", "tests/test_strict.py"],
    "strict": [*EXACT, "tests/test_per_sample.py", "tests/test_engine.py"],
    "uninterrupted": ["tests/test_signals.py", "tests/test_interrupts.py"],
}


# ---- mutants -----------------------------------------------------------------------------------------------


def variants(node):
    """Yield what may stand in the place of a node."""
    if isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            other = copy.copy(node)
            other.ops = [*node.ops[:i], COMPARE[type(operator)](), *node.ops[i + 1 :]]
            yield other
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        yield ast.BinOp(node.left, BINARY[type(node.op)](), node.right)
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.If | ast.While):
        other = copy.copy(node)
        other.test = ast.UnaryOp(ast.Not(), node.test)
        yield other


def is_typing(node):
    """Whether a node is of no meaning when the program runs: imports for types, stubs of overloads and protocols."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return True
    if isinstance(node, ast.FunctionDef) and any("overload" in ast.unparse(d) for d in node.decorator_list):
        return True
    return isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(b) for b in node.bases)


def sites(node, inside=""):
    """Yield (parent, field, index or None, node, name of the function) for every node that may be another one."""
    if is_typing(node):
        return
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        inside = f"{inside}.{node.name}".strip(".")
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr):
                yield node, field, index, child, inside
                yield from sites(child, inside)


def put(parent, field, index, node):
    """Put a node into the place of another one."""
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def mutants(module):
    """Yield (what is changed, source) of every mutant of a module."""
    tree = ast.parse((CORE / f"{module}.py").read_text())
    for parent, field, index, node, inside in list(sites(tree)):
        for other in variants(node):
            put(parent, field, index, other)
            with contextlib.suppress(ValueError):  # no program
                source = ast.unparse(ast.fix_missing_locations(tree))
                short = [" ".join(ast.unparse(n).split())[:90] for n in (node, other)]
                yield f"{module}.{inside}: {short[0]} -> {short[1]}", source
            put(parent, field, index, node)


# ---- whether a test notices ------------------------------------------------------------------------------------


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module another source."""

    def __init__(self, name, source):
        """Take the module's name, and the source."""
        self.name, self.source = name, source

    def find_spec(self, name, path=None, target=None):
        """Return where the module comes from."""
        if name == self.name:
            return importlib.util.spec_from_loader(name, self, origin=str(CORE / f"{name.rpartition('.')[2]}.py"))
        return None

    def exec_module(self, module):
        """Run its source."""
        exec(compile(self.source, self.name, "exec"), module.__dict__)


def noticed(module, source):
    """Whether a test of the module fails with this source, in a fork of this process, which has not imported gradclip."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
    status = 1
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU, CPU))
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        sys.meta_path.insert(0, Finder(f"gradclip._core.{module}", source))
        import pytest

        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow", f"--rootdir={ROOT}"]
        status = int(pytest.main([*options, *[str(ROOT / name) for name in MODULES[module]]]))
    finally:
        os._exit(status)


def chosen(options):
    """The mutants that the command line asks for: (module, what is changed, source)."""
    found = [(m, *mutant) for m in options.module or MODULES for mutant in mutants(m)]
    if options.count is None or options.count >= len(found):
        return found, len(found)
    picked = np.random.default_rng(options.seed).choice(len(found), options.count, replace=False)
    return [found[i] for i in sorted(picked)], len(found)


def main():
    """Run what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, help="so many of them at random")
    parser.add_argument("--module", choices=MODULES, action="append")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after these")
    options = parser.parse_args()
    os.chdir(ROOT)
    os.environ["GRADCLIP_NUM_THREADS"] = "1"
    import ml_dtypes
    import pytest
    import scipy.sparse
    import scipy.special

    assert all((ml_dtypes, pytest, scipy))  # imported once, here
    todo, of = chosen(options)
    reasons = {line.rpartition(" | ")[0] for line in REASONS.read_text().splitlines()} if REASONS.exists() else set()
    end, tried, known, survivors = time.monotonic() + options.seconds, 0, 0, []
    for module in {module for module, _, _ in todo}:
        assert not noticed(module, (CORE / f"{module}.py").read_text()), f"{module}: the tests fail as it is"
    for module, what, source in todo:
        if time.monotonic() > end:
            break
        tried += 1
        if what in reasons:
            known += 1
        elif not noticed(module, source):
            survivors.append(what)
            print(f"survived: {what}", flush=True)
    killed = tried - known - len(survivors)
    print(f"{tried:,} of {of:,} mutants (seed {options.seed}): {killed:,} noticed, {known:,} left out with a reason")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
