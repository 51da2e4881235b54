"""What type checkers and `typing.get_type_hints` make of the package as it is installed."""

import __future__

import ast
import importlib.util
import inspect
import json
import os
import pkgutil
import re
import runpy
import shutil
import subprocess
import sys
import typing
from importlib import metadata
from pathlib import Path

import pytest

import gradclip
from gradclip._core import options

TYPED = Path(__file__).parent / "typed"
FILES = "good.py", "bad.py"
NEEDED = {"torch": ["torch"], "jax": ["jax", "optax"]}  # by what is in gradclip and cannot be imported without


def annotated():
    """Every function, class and method of the modules that are written in Python."""
    for found in pkgutil.walk_packages(gradclip.__path__, "gradclip.", lambda _: None):  # gradclip.torch without PyTorch
        if any(importlib.util.find_spec(name) is None for name in NEEDED.get(found.name.split(".")[1], ())):
            continue
        module = importlib.import_module(found.name) if not found.name.endswith("__main__") else gradclip
        for name, value in vars(module).items():
            if getattr(value, "__module__", "") != module.__name__ or not module.__file__.endswith(".py"):
                continue
            methods = vars(value).values() if inspect.isclass(value) else ()
            methods = [getattr(m, "fget", None) or getattr(m, "__func__", None) or m for m in methods]
            yield from ((f"{found.name}.{name}", x) for x in (value, *methods) if inspect.isfunction(x) or inspect.isclass(x))


def names_for_checkers(value):
    """What annotations of an internal function or class may use: its module's names, and those under ``if TYPE_CHECKING``.

    None for what is public, whose annotations may use no more than the module's names."""
    if not re.search(r"\._(?!_)", f"{value.__module__}.{value.__qualname__}"):
        return None
    module = sys.modules[value.__module__]
    names = dict(vars(module))
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            block = ast.Module(node.body, [])
            exec(compile(block, module.__file__, "exec", flags=__future__.annotations.compiler_flag), names)
    return names


def test_type_hints_can_be_resolved():
    resolved = {name: typing.get_type_hints(value, localns=names_for_checkers(value)) for name, value in annotated()}
    assert resolved["gradclip.norm.clip_by_global_norm_"]["return"] is gradclip.ClipReport
    assert len(resolved) > 100


def test_options_of_type_checkers_are_those_that_are_checked():
    assert typing.get_type_hints(options.NormOptions).keys() == options.KEYWORDS.keys()


def test_good_py_uses_every_public_name():
    used = set(re.findall(r"\b(?:gradclip\.)?(\w+)", (TYPED / "good.py").read_text(encoding="utf-8")))
    assert set(gradclip.__all__) <= used
    runpy.run_path(TYPED / "good.py", run_name="__main__")


def elsewhere(folder, *command):
    """What a checker says of copies of the files, in a folder where the package lies only because it is installed."""
    for name in FILES:
        shutil.copy(TYPED / name, folder)
    environment = dict(os.environ)
    try:
        metadata.distribution("gradclip")
    except metadata.PackageNotFoundError:  # the tests run in a folder where it was only built
        environment["MYPYPATH"] = environment["PYTHONPATH"] = str(Path(gradclip.__file__).parents[1])
    command = [sys.executable, "-m", *command, *FILES]
    done = subprocess.run(command, check=False, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr  # errors were found
    return done.stdout


def mypy(folder):
    pytest.importorskip("mypy")
    said = elsewhere(folder, "mypy", "--strict", "--config-file=", f"--cache-dir={folder}")
    return {(name, int(line)): text for name, line, text in re.findall(r"^(\w+\.py):(\d+): error: (.*)", said, re.MULTILINE)}


def pyright(folder):
    pytest.importorskip("pyright")
    (folder / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    said = json.loads(elsewhere(folder, "pyright", "--outputjson", "--pythonpath", sys.executable))
    return {(Path(e["file"]).name, e["range"]["start"]["line"] + 1): e["message"] for e in said["generalDiagnostics"]}


@pytest.mark.slow
@pytest.mark.parametrize("checker", [mypy, pyright])
def test_checkers_find_what_is_wrong_and_nothing_else(checker, tmp_path):
    lines = (TYPED / "bad.py").read_text(encoding="utf-8").splitlines()
    marked = {("bad.py", number) for number, line in enumerate(lines, 1) if line.endswith("# error")}
    found = checker(tmp_path)
    assert marked
    assert {where: found.get(where, "nothing found") for where in marked ^ found.keys()} == {}
