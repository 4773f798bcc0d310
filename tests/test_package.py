"""The shape of the house: public names, types, and packages that import downwards only."""

from __future__ import annotations

import ast
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import delta_tune

PACKAGE = Path(delta_tune.__file__).parent

# Lowest first. A package imports those of lower layers only, and packages of one layer do not import each other.
LAYERS = [
    {"config", "background"},
    {"filesystem"},
    {"results"},
    {"console", "labels"},
    {"data"},
    {"models", "spaces"},
    {"attention"},
    {"training"},
    {"cluster", "inference", "serving"},
    {"search", "export", "explanation"},
    {"report", "tracking"},
    {"study", "inspection"},
    {"cli"},
]
KNOW_RAY = {"cluster", "search", "tracking", "study"}
KNOW_OPTUNA = {"spaces", "search", "report", "tracking", "study"}
MODULES = sorted(str(file.relative_to(PACKAGE).with_suffix("")).replace("/", ".") for file in PACKAGE.rglob("*.py"))
INSIDE = [module for module in MODULES if module not in ("__init__", "__main__")]


def package_of(module):
    return module.partition(".")[0]


def text_of(module):
    return (PACKAGE / f"{module.replace('.', '/')}.py").read_text()


@cache
def imported(module):
    """What a module imports anywhere in its text, in full: `delta_tune.config.errors`, `ray.tune`."""
    names = set()
    for node in ast.walk(ast.parse(text_of(module))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def own_imports(module):
    """Modules of ours that a module imports; a package stands for its `__init__`."""
    names = {name.removeprefix("delta_tune.") for name in imported(module) if name.startswith("delta_tune.")}
    return {name if name in MODULES else f"{name}.__init__" for name in names} & set(MODULES)


def outside_imports(module):
    """First names of the packages of others that a module imports."""
    return {name.partition(".")[0] for name in imported(module)} - {"delta_tune"}


def test_all_is_sorted():
    assert delta_tune.__all__ == sorted(delta_tune.__all__)


def test_all_has_no_name_twice():
    assert len(set(delta_tune.__all__)) == len(delta_tune.__all__)


@pytest.mark.parametrize("name", delta_tune.__all__)
def test_all_names_can_be_imported(name):
    assert getattr(delta_tune, name) is not None


def test_all_names_what_type_checkers_see():
    (block,) = (node for node in ast.parse((PACKAGE / "__init__.py").read_text()).body if isinstance(node, ast.If))
    seen = {alias.name for node in block.body for alias in node.names}
    assert seen == set(delta_tune.__all__)


def test_package_says_which_name_it_does_not_have():
    with pytest.raises(AttributeError, match="module 'delta_tune' has no attribute 'tuna'"):
        _ = delta_tune.tuna


def test_package_has_types():
    assert (PACKAGE / "py.typed").exists()


def test_each_package_has_a_layer():
    assert sorted(package for layer in LAYERS for package in layer) == sorted(set(map(package_of, INSIDE)))


@pytest.mark.parametrize("module", INSIDE)
def test_modules_import_packages_of_lower_layers_only(module):
    package = package_of(module)
    layer = next(number for number, packages in enumerate(LAYERS) if package in packages)
    allowed = {package}.union(*LAYERS[:layer])
    assert {package_of(name) for name in own_imports(module)} <= allowed


@pytest.mark.parametrize("module", INSIDE)
def test_modules_import_public_names_only(module):
    names = {name.rpartition(".")[2] for name in imported(module) if name.startswith("delta_tune.")}
    assert not {name for name in names if name.startswith("_")}


def test_modules_import_each_other_without_cycles():
    tuple(TopologicalSorter({module: own_imports(module) - {module} for module in INSIDE}).static_order())


@pytest.mark.parametrize(("library", "packages"), [("ray", KNOW_RAY), ("optuna", KNOW_OPTUNA)])
def test_only_some_packages_know_a_library(library, packages):
    assert {package_of(module) for module in INSIDE if library in outside_imports(module)} <= packages


def test_modules_do_not_import_the_shipped_search_spaces():
    assert not any("search_spaces" in outside_imports(module) for module in MODULES)


@pytest.mark.parametrize("module", [module for module in MODULES if package_of(module) == "config"])
def test_configuration_needs_the_standard_library_alone(module):
    assert outside_imports(module) <= sys.stdlib_module_names


@pytest.mark.parametrize("module", ["training.source_map_index", "cluster.shared_objects"])
def test_the_processes_of_shelves_do_not_wait_for_torch(module):
    assert not outside_imports(module) & {"torch", "numpy", "timm"}


@pytest.mark.parametrize("module", MODULES)
def test_modules_begin_with_a_docstring(module):
    assert ast.get_docstring(ast.parse(text_of(module)))
