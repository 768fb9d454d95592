"""The laws that no single module can keep: imports, packaging, registered names, what docstrings promise."""

import ast
import fnmatch
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("lookalike", "esmm", "serving", "ranking")
LEAVES = ("lookalike", "esmm", "serving")
SAVED_BY_KERAS = re.compile(r"keras\.(Model|layers|losses|optimizers|metrics|initializers|regularizers|constraints)\b")


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module in the four packages."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text(encoding="utf-8"))


@cache
def imports(name: str) -> tuple[str, ...]:
    """Every dotted name that a module imports, inside functions too; relative ones made absolute."""
    return tuple(found_imports(name))


def found_imports(name: str) -> Iterator[str]:
    path = modules()[name]
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, node.module] if node.module else base)
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield inner if inner in modules() else source


def test_the_four_packages_are_found():
    assert {name for name in modules() if "." not in name} == set(PACKAGES)


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaf_packages_import_none_of_ours_but_themselves(leaf):
    breaches = [
        f"{name} imports {target}"
        for name in modules()
        if name.split(".")[0] == leaf
        for target in imports(name)
        if target.split(".")[0] in PACKAGES and target.split(".")[0] != leaf
    ]
    assert breaches == []


def test_no_module_imports_tests_examples_or_benchmarks():
    outside = {"tests", "examples", "benchmarks"}
    assert [name for name in modules() if outside & {target.split(".")[0] for target in imports(name)}] == []


def test_imported_modules_of_ours_exist():
    # Imports inside functions fail late, and mypy passes over a module that is not there.
    missing = [
        f"{name} imports {target}"
        for name in modules()
        for target in imports(name)
        if target.split(".")[0] in PACKAGES and target not in modules()
    ]
    assert missing == []


def test_no_import_cycle():
    edges = {name: {target for target in imports(name) if target in modules()} - {name} for name in modules()}
    while free := {name for name, targets in edges.items() if not targets}:
        edges = {name: targets - free for name, targets in edges.items() if name not in free}
    assert edges == {}, "what is left imports itself in a circle, or imports what does"


def test_pyproject_lists_the_folders_on_disk():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sorted(settings["packages"]) == sorted(folders)
    assert [folder for folder in folders if not (ROOT / folder.replace(".", "/") / "__init__.py").is_file()] == []


def test_pyproject_packs_every_data_file():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["*"]
    left_out = [
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
        if not any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)
    ]
    assert left_out == []
    assert [package for package in PACKAGES if not (ROOT / package / "py.typed").is_file()] == []


def registration(node: ast.ClassDef | ast.FunctionDef) -> dict[str, str] | None:
    """The keyword arguments of `register_keras_serializable` on a class or function, or None."""
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith("register_keras_serializable"):
            return {keyword.arg: ast.literal_eval(keyword.value) for keyword in decorator.keywords if keyword.arg}
    return None


def test_keras_names_are_registered_once_under_their_package():
    # A duplicate name would silently replace the first.
    names: dict[str, str] = {}
    problems = []
    for module in modules():
        for node in ast.walk(tree(module)):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef):
                continue
            given = registration(node)
            if given is None:
                # A private layer is built by its owner and never read back from a config of its own.
                saved = isinstance(node, ast.ClassDef) and not node.name.startswith("_")
                if saved and any(SAVED_BY_KERAS.match(ast.unparse(base)) for base in node.bases):
                    problems.append(f"{module}.{node.name} is not registered")
                continue
            package = given.get("package", "Custom")
            name = f"{package}>{given.get('name', node.name)}"
            if package != module.split(".")[0]:
                problems.append(f"{module}.{node.name} is registered under {package!r}")
            if name in names:
                problems.append(f"{name} is registered in {names[name]} and in {module}")
            names[name] = module
    assert problems == []
    assert len(names) > 10


def python(code: str) -> str:
    """Runs code in a fresh interpreter; its standard output."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


HEAVY = "print([name for name in ('tensorflow', 'keras', 'torch', 'jax') if name in sys.modules])"


def loaded(names: list[str], heavy: list[str]) -> dict[str, list[str]]:
    """Module -> which heavy ones are loaded after its import, one module after the other in a fresh interpreter."""
    code = f"""
import importlib, sys
for name in {names}:
    importlib.import_module(name)
    print(name, *[heavy for heavy in {heavy} if heavy in sys.modules])
"""
    return {name: heavy for name, *heavy in map(str.split, python(code).splitlines())}


def test_import_loads_no_tensorflow():
    names = [
        "ranking",
        "ranking.cli",
        "ranking.data.tables",
        "ranking.replay.tuning",
        "lookalike.clicklog",
        "lookalike.seeds",
        "serving",
        "serving.rest",
        "serving.rpc",
        "serving.server.bundle",
        "serving.server.server",
        "serving.slate_log",
    ]
    assert loaded(names, ["tensorflow", "keras", "torch", "jax"]) == {name: [] for name in names}


def test_processes_that_store_clicks_start_without_scikit_learn_and_scipy():
    """They take a second each of every restart."""
    names = ["lookalike.clicklog", "lookalike.seeds", "lookalike.snapshots", "ranking.ingest"]
    assert loaded(names, ["sklearn", "scipy.optimize", "scipy.sparse"]) == {name: [] for name in names}


def test_help_of_every_command_loads_no_tensorflow():
    code = f"""
import sys
from typer.main import get_command
from typer.testing import CliRunner
from ranking.cli import app

def walk(command, words):
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0 and "Usage" in result.output, (words, result.output)
    print("seedrank", *words)
    for name, inner in getattr(command, "commands", dict()).items():
        walk(inner, [*words, name])

walk(get_command(app), [])
{HEAVY}
"""
    *commands, heavy = python(code).splitlines()
    assert heavy == "[]"
    assert {"seedrank", "seedrank data simulate", "seedrank train", "seedrank replay tune"} <= set(commands)


def bound(module: ast.Module) -> set[str]:
    """Names that a module binds at its top level."""
    names: set[str] = set()
    for node in ast.walk(ast.Module([n for n in module.body if not isinstance(n, ast.ClassDef | ast.FunctionDef)], [])):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).split(".")[0])
    return names | {node.name for node in module.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}


def public(name: str) -> list[str] | None:
    """`__all__` of a module, None where it has none."""
    for node in tree(name).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return None


@pytest.mark.parametrize("name", modules())
def test_module_says_what_is_public(name):
    names = public(name)
    if names is None:
        # Only the marker of a folder may go without, when there is nothing in it.
        assert modules()[name].name == "__init__.py", f"{name} has no __all__"
        assert {n for n in bound(tree(name)) if not n.startswith("__")} == set()
    else:
        assert len(set(names)) == len(names)
        assert set(names) <= bound(tree(name))


def arguments(text: str) -> dict[str, str]:
    """The `Args` section of a docstring: name -> its words on one line."""
    lines = text.splitlines()
    if "Args:" not in (stripped := [line.strip() for line in lines]):
        return {}
    start = stripped.index("Args:")
    margin = len(lines[start]) - len(lines[start].lstrip())
    found: dict[str, str] = {}
    for line in lines[start + 1 :]:
        depth = len(line) - len(line.lstrip())
        if line.strip() and depth <= margin:
            break
        entry = re.match(r"\*{0,2}(\w+): (.*)", line.strip())
        if depth == margin + 4 and entry:
            found[entry[1]] = entry[2]
        elif line.strip() and found:
            found[list(found)[-1]] += " " + line.strip()
    return found


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, ast.expr | None]:
    """Parameter -> the expression of its default."""
    spec = function.args
    plain = [*spec.posonlyargs, *spec.args]
    defaults = [None] * (len(plain) - len(spec.defaults)) + spec.defaults
    found = {argument.arg: default for argument, default in zip(plain, defaults, strict=True)}
    found |= {argument.arg: default for argument, default in zip(spec.kwonlyargs, spec.kw_defaults, strict=True)}
    return found | {argument.arg: None for argument in (spec.vararg, spec.kwarg) if argument}


def constructor(node: ast.ClassDef, name: str) -> tuple[dict[str, ast.expr | None], bool]:
    """Parameters of a class by its `__init__` or a dataclass's fields, and whether they are all of them."""
    for inner in node.body:
        if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
            return parameters(inner), inner.args.kwarg is None
    found: dict[str, ast.expr | None] = {}
    complete = True
    neighbours = {n.name: n for n in tree(name).body if isinstance(n, ast.ClassDef)}
    for base in map(ast.unparse, node.bases):
        inherited, known = constructor(neighbours[base], name) if base in neighbours else ({}, False)
        found |= inherited
        complete &= known
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    return found | {ast.unparse(field.target): field.value for field in fields}, complete


def constants(name: str) -> dict[str, ast.expr]:
    """Top-level assignments of a module, and what its imports call themselves."""
    found: dict[str, ast.expr] = {}
    for node in tree(name).body:
        if isinstance(node, ast.Assign):
            found[ast.unparse(node.targets[0])] = node.value
        elif isinstance(node, ast.Import):
            found |= {alias.asname: ast.parse(alias.name, mode="eval").body for alias in node.names if alias.asname}
    return found


def value(node: ast.expr, known: dict[str, ast.expr]) -> object:
    """What an expression stands for, or its text where only running it would tell."""
    node = known.get(node.id, node) if isinstance(node, ast.Name) else node
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


@pytest.mark.parametrize("name", modules())
def test_docstrings_name_the_arguments_and_defaults_of_the_code(name):
    problems = []
    for node in ast.walk(tree(name)):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        given, complete = constructor(node, name) if isinstance(node, ast.ClassDef) else (parameters(node), True)
        for argument, words in arguments(ast.get_docstring(node) or "").items():
            where = f"{node.name}: `{argument}`"
            if argument not in given:
                problems += [f"{where} is no argument"] if complete else []
                continue
            said = re.search(r"Defaults to `([^`]+)`", words) or re.search(r"Defaults to (-?\d[\d.e-]*\d|\d)\b", words)
            if not said:
                continue
            promised = value(ast.parse(said[1], mode="eval").body, constants(name))
            default = given[argument]
            if default is None:
                problems.append(f"{where} has no default, the docstring says {said[1]}")
            # None stands for whatever the docstring says.
            elif value(default, constants(name)) not in (None, promised):
                problems.append(f"{where} is {ast.unparse(default)}, the docstring says {said[1]}")
    assert problems == []


def test_docstring_reader_reads():
    # Known by eye: one entry over two lines, a default each way.
    text = (
        "One line.\n\nArgs:\n    k: int. Clusters,\n        many. Defaults to `20`.\n    x: array.\n\nReturns:\n    y."
    )
    assert arguments(text) == {"k": "int. Clusters, many. Defaults to `20`.", "x": "array."}
    function = ast.parse("def f(x, k=20, *, name='a'): ...").body[0]
    assert {key: default and ast.unparse(default) for key, default in parameters(function).items()} == {
        "x": None,
        "k": "20",
        "name": "'a'",
    }
