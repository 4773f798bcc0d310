"""Folders with weights, as the Hugging Face Hub's cache has them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from delta_tune.config import UserError
from delta_tune.models.backbones import load_backbone
from delta_tune.models.weights_folder import TrainingImages, named_architecture, training_images, weights_in


def in_cache(root: Path, revisions: tuple[str, ...] = ("abc",), main: str | None = "abc") -> Path:
    """A repository in the cache, its files links as the Hub's client makes them."""
    repository = root / "models--timm--test_vit.r160_in1k"
    (repository / "blobs").mkdir(parents=True)
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit").state_dict(), repository / "blobs" / "1234")
    for revision in revisions:
        folder = repository / "snapshots" / revision
        folder.mkdir(parents=True)
        (folder / "model.safetensors").symlink_to(Path("../../blobs/1234"))
        config = {"architecture": "test_vit", "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}
        (folder / "config.json").write_text(json.dumps(config))
    if main is not None:
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(main)
    return repository


@pytest.mark.parametrize("inner", ["", "snapshots/abc"])
def test_repository_in_the_cache_and_its_snapshot_are_loaded_without_a_network(
    inner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("no network is needed"))
    repository = in_cache(tmp_path)
    backbone = load_backbone("timm:test_vit", str(repository / inner), 64)
    assert backbone.preprocessing.mean == (0.1, 0.2, 0.3)
    assert backbone.preprocessing.std == (0.4, 0.5, 0.6)
    assert backbone.source_head is not None


def test_the_only_snapshot_is_taken_where_main_is_not_known(tmp_path: Path) -> None:
    repository = in_cache(tmp_path, main=None)
    assert weights_in(repository) == (repository / "snapshots/abc/model.safetensors",)


def test_several_snapshots_without_main_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 2 snapshots and none that main means"):
        weights_in(in_cache(tmp_path, ("abc", "def"), main="gone"))


def test_revision_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    assert weights_in(in_cache(tmp_path, main="../..")) == (
        tmp_path / "models--timm--test_vit.r160_in1k/snapshots/abc/model.safetensors",
    )


def test_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no weights; give --weights one"):
        load_backbone("timm:test_vit", str(tmp_path), 64)


def test_weights_in_several_files_are_read_together(tmp_path: Path) -> None:
    tensors = list(timm.create_model("test_vit").state_dict().items())
    places = {}
    for number, part in enumerate((tensors[:20], tensors[20:])):
        name = f"model-{number}.safetensors"
        save_file(dict(part), tmp_path / name)
        places |= {key: name for key, _ in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert load_backbone("timm:test_vit", str(tmp_path), 64).source_head is not None


@pytest.mark.parametrize("name", ["../secret.safetensors", "gone.safetensors", 3])
def test_index_that_lists_other_places_is_refused(name: object, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match="download the weights again"):
        weights_in(tmp_path)


def test_preprocessing_of_transformers_is_understood(tmp_path: Path) -> None:
    told = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2], "resample": 3, "size": {"shortest_edge": 256}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told | {"crop_size": {"height": 224, "width": 224}}))
    assert training_images(tmp_path) == TrainingImages(
        mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2), size=224, crop_pct=0.875, interpolation="bicubic"
    )


@pytest.mark.parametrize(
    "content",
    ["[1]", "{", "[" * 99999, '{"pretrained_cfg": {"mean": [1e999, 0, 0], "std": [0, 1, 1], "crop_pct": -1}}'],
)
def test_strange_configuration_tells_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    assert training_images(tmp_path) == TrainingImages()
    assert named_architecture(tmp_path) == ""


def test_folder_of_another_network_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"do not fit timm:test_resnet: .*\(abc/config.json names timm:test_vit\)"):
        load_backbone("timm:test_resnet", str(in_cache(tmp_path) / "snapshots/abc"), 64)
