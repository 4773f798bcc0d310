"""The shape of the house: public names, types, and imports that run downwards only."""

import ast
import sys
from pathlib import Path

import pytest

import delta_tune

PACKAGE = Path(delta_tune.__file__).parent

# Lowest first: a module imports only modules above it in this list. What stands down to `training` fine-tunes one
# network in one process and knows neither Ray nor Optuna.
TRAINER = [
    *("config", "files", "addresses", "cache", "devices"),
    *("convolution", "tracing", "ablation_plan", "ablation", "attention", "attention_store"),
    *("trees", "sources", "splits", "images", "reading", "data", "resampling", "augment"),
    *("weights", "layers", "models", "features", "folding", "regularizers"),
    *(
        "evaluation",
        "inference",
        "exporting",
        "probe",
        "probe_images",
        "probing",
        "task",
        "predictions",
        "map_pictures",
    ),
    *("map_shelf", "source_maps", "objective", "checkpoint", "training"),
]
STUDY = [
    *("background", "settings", "journal", "results", "mirror", "time_use", "evidence", "live", "progress", "packing"),
    *("spaces", "space_checks", "plain_arm", "time_budget", "earlier", "samplers", "storage", "sampling", "scheduling"),
    *("figures", "space_figures", "report"),
    *("joining", "cluster", "everywhere", "outside", "attention_tasks", "map_sharing", "final", "watchdog", "worker"),
    *("recording", "plan", "trial_plan", "room", "session", "running"),
    *("mlflow_runs", "wandb_runs", "trackers", "resuming", "confirming", "retraining", "model_card", "display"),
    *("study", "comparing", "search", "cli", "tools", "__main__", "__init__"),
]
ORDER = [*TRAINER, *STUDY]


def imported(module):
    """The first names of what a module imports anywhere in its text; those of the package in full."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}.py has a relative import"
            whole = node.module == "delta_tune"
            names |= {f"delta_tune.{alias.name}" for alias in node.names} if whole else {node.module}
    return names


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


def test_modules_are_all_in_the_order():
    assert sorted(ORDER) == sorted(file.stem for file in PACKAGE.glob("*.py"))


@pytest.mark.parametrize("module", ORDER)
def test_modules_import_only_what_is_below_them(module):
    below = {f"delta_tune.{name}" for name in ORDER[: ORDER.index(module)]}
    assert {name for name in imported(module) if name.startswith("delta_tune")} <= below


@pytest.mark.parametrize("module", TRAINER)
def test_modules_of_the_trainer_know_neither_ray_nor_optuna(module):
    assert not {name.partition(".")[0] for name in imported(module)} & {"ray", "optuna"}


def test_modules_do_not_import_the_shipped_search_spaces():
    assert not any("search_spaces" in name for module in ORDER for name in imported(module))


def test_configuration_needs_the_standard_library_alone():
    assert {name.partition(".")[0] for name in imported("config")} <= sys.stdlib_module_names


def test_the_processes_of_shelves_do_not_wait_for_torch():
    for module in ("map_shelf", "cluster"):
        assert not {name.partition(".")[0] for name in imported(module)} & {"torch", "numpy", "timm"}


@pytest.mark.parametrize("module", ORDER)
def test_modules_begin_with_a_docstring(module):
    assert ast.get_docstring(ast.parse((PACKAGE / f"{module}.py").read_text()))
