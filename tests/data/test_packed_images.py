import errno
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time

import filelock
import numpy as np
import pytest
from PIL import Image

from delta_tune.config import TrialConfig, UserError
from delta_tune.data import packs
from delta_tune.data.images import Preprocessing, open_image, to_square
from delta_tune.data.loading import load_dataset
from delta_tune.data.packed_images import PackedImages, pack_here
from delta_tune.data.resampling import first_images, hold_out_folds, resample_splits
from delta_tune.data.stored_images import DecodedImages, EncodedImages
from delta_tune.training.task import prepare
from delta_tune.training.trial import run_trial

PREPROCESSING = Preprocessing(
    image_size=12, stored_size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear"
)


@pytest.fixture(autouse=True)
def process():
    """Each test begins as a new process does: it has no packs open."""
    packs.open_store.cache_clear()
    yield
    packs.open_store.cache_clear()


@pytest.fixture
def folder(tmp_path):
    """Two classes of 20 photos: some smaller than their square, one much larger."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(20):
            side = 150 if i == 7 else 20
            pixels = rng.integers(0, 256, (side, side + 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{i}.jpg", quality=20)
    return tmp_path / "set"


@pytest.fixture
def scratch(tmp_path):
    return tmp_path / "scratch"


def load(data, scratch, limit=1000, **options):
    return load_dataset(data, preprocessing=PREPROCESSING, memory_limit=limit, scratch=str(scratch), **options)


def all_of(split):
    return split.images.batch(np.arange(len(split)))


def expected(split):
    """Decoded from the files by their names."""
    return np.stack([to_square(open_image(name), 16, "bilinear") for name in split.names])


def files_in(scratch, suffix="images"):
    return sorted(scratch.glob(f"*/*.{suffix}"))


# ---------------------------------------------------------------------------------------------------- the same data


def test_load_dataset_packs_what_does_not_fit_and_gives_the_same_data(folder, scratch):
    decoded, packed = load_dataset(folder, preprocessing=PREPROCESSING), load(folder, scratch)
    assert isinstance(packed.train.images, PackedImages)
    assert packed.fingerprint == decoded.fingerprint
    for split in ("train", "val"):
        one, other = decoded.for_name(split), packed.for_name(split)
        order = np.random.default_rng(1).permutation(len(one))
        assert np.array_equal(one.images.batch(order), other.images.batch(order))
        assert (one.names, one.labels.tolist()) == (other.names, other.labels.tolist())


def test_load_dataset_keeps_small_splits_in_memory_where_they_fit(folder, scratch):
    """Val, which is read first, has 8 files of about 800 bytes; train has 32."""
    dataset = load(folder, scratch, limit=9000)
    assert isinstance(dataset.val.images, EncodedImages)
    assert isinstance(dataset.train.images, PackedImages)
    where, place = dataset.notes[-2:]
    assert where.startswith("The images of train are on disk and decoded per batch, for their files take more than")
    assert "limit of 8.79 KiB; those of val take " in where
    size = files_in(scratch)[0].stat().st_size
    start = f"Read from {files_in(scratch)[0].parent} ({size / 1024:.3g} KiB): 32 images. Other nodes"
    assert place.startswith(start)


def test_load_dataset_leaves_out_of_packs_what_it_leaves_out_of_splits(folder, scratch):
    (folder / "cat" / "3.jpg").write_bytes(b"none")
    dataset = load(folder, scratch, skip_damaged=True)
    assert np.array_equal(all_of(dataset.train), expected(dataset.train))
    shutil.rmtree(scratch)
    packs.open_store.cache_clear()
    assert np.array_equal(all_of(dataset.train), expected(dataset.train))


def test_packed_images_pooled_and_taken_are_those_of_their_names(folder, scratch):
    dataset = load(folder, scratch)
    splits = [resample_splits(dataset, seed=1).val, hold_out_folds(dataset, 4, seed=2)[3].train]
    splits += [first_images(dataset, 5).train, dataset.train.taken(range(4, 9)).taken(range(1, 3))]
    for split in splits:
        assert np.array_equal(all_of(split), expected(split))


@pytest.mark.parametrize("regularizer", ["l2", "delta_uniform"])
def test_trial_on_packed_images_is_bit_identical(image_folder, tiny_weights, scratch, regularizer):
    arguments = (image_folder, "timm:test_resnet", str(tiny_weights))
    config = TrialConfig(regularizer=regularizer, batch_size=8, max_epochs=2, lr=0.01)
    decoded = prepare(*arguments, image_size=64)
    size = sum(len(decoded.dataset.for_name(split)) for split in ("train", "val", "test"))
    size *= 3 * decoded.backbone.preprocessing.stored_size**2
    others = [prepare(*arguments, image_size=64, memory_limit=limit, scratch=str(scratch)) for limit in (size - 1, 0)]
    tasks = [decoded, *others]
    kinds = [type(task.dataset.train.images) for task in tasks]
    assert kinds == [DecodedImages, EncodedImages, PackedImages]
    results = [run_trial(task, config) for task in tasks]
    for result in results[1:]:
        for row, same in zip(result.epochs, results[0].epochs, strict=True):
            assert {k: v for k, v in row.items() if "seconds" not in k} == {
                k: v for k, v in same.items() if "seconds" not in k
            }
        for name, value in results[0].model_state.items():
            assert value.equal(result.model_state[name])


# ------------------------------------------------------------------------------------------ files where they are


@pytest.fixture
def default(scratch, monkeypatch):
    monkeypatch.setattr("delta_tune.data.packed_images.SCRATCH", str(scratch))
    return scratch


def small_files(folder):
    """Make all but one photo smaller than half of their square; return the large one."""
    for number, file in enumerate(sorted(folder.glob("*/*"))):
        Image.new("RGB", (20, 20), (number, 0, 99)).save(file.with_suffix(".webp"))
        file.unlink()
    large = folder / "dog" / "large.png"
    Image.fromarray(np.random.default_rng(5).integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(large)
    return large


def test_image_files_are_read_where_they_are_and_large_ones_packed(folder, default, monkeypatch):
    large = small_files(folder)
    monkeypatch.chdir(folder.parent)
    dataset = load_dataset("set", preprocessing=PREPROCESSING, memory_limit=100)
    splits = {split: dataset.for_name(split) for split in ("train", "val")}
    counts = {split: int(each.images.origin.in_packs.sum()) for split, each in splits.items()}
    assert sum(counts.values()) == 1
    assert os.path.relpath(large) in splits[max(counts, key=counts.get)].names
    wanted = [expected(each) for each in splits.values()]
    monkeypatch.chdir("/")  # as processes of Ray do
    for each, pixels in zip(splits.values(), wanted, strict=True):
        assert np.array_equal(all_of(pickle.loads(pickle.dumps(each))), pixels)
    assert len(files_in(default)) == 1
    assert dataset.notes[-2].startswith("Read where they are: 40 images. No node may lack these files, and none may")
    assert ": 1 image. Other nodes write" in dataset.notes[-1]


def test_image_file_that_was_changed_or_removed_is_refused(folder, default):
    small_files(folder)
    dataset = load_dataset(folder, preprocessing=PREPROCESSING, memory_limit=100)
    row = int(np.flatnonzero(~dataset.train.images.origin.in_packs)[3])
    Image.new("RGB", (20, 20), "red").save(dataset.train.names[row])
    with pytest.raises(UserError, match=r"\.webp was changed since the study began; restore it"):
        dataset.train.images.batch(np.array([row]))
    os.unlink(dataset.train.names[row])
    with pytest.raises(UserError, match=r"\.webp cannot be read any more on .* \(No such file or directory\); restore"):
        dataset.train.images.batch(np.array([row]))


def test_pack_here_copies_no_image_file(folder, default):
    small_files(folder)
    dataset = on_another_node(load_dataset(folder, preprocessing=PREPROCESSING, memory_limit=100), default)
    for split in (dataset.train, dataset.val):
        pack_here(split.images)
        assert np.array_equal(all_of(split), expected(split))
    stored = np.concatenate([packs.Pack(index).digests for index in files_in(default, "index")])
    assert len(stored) == 1


# ------------------------------------------------------------------------------------------------- an earlier study


def test_load_dataset_writes_nothing_twice(folder, scratch):
    first = load(folder, scratch)
    before = [(file, file.stat().st_mtime_ns) for file in files_in(scratch)]
    second = load(folder, scratch, seed=5, val_fraction=0.4)
    assert [(file, file.stat().st_mtime_ns) for file in files_in(scratch)] == before
    assert np.array_equal(all_of(second.val), expected(second.val))
    assert first.val.names != second.val.names


def test_load_dataset_adds_images_that_are_new_or_changed(folder, scratch):
    load(folder, scratch)
    before = files_in(scratch)
    Image.new("RGB", (20, 20), "red").save(folder / "cat" / "3.jpg")
    Image.new("RGB", (20, 20), "blue").save(folder / "cat" / "99.jpg")
    dataset = load(folder, scratch)
    for split in (dataset.train, dataset.val):
        assert np.array_equal(all_of(split), expected(split))
    added = set(files_in(scratch)) - set(before)
    assert 0 < sum(file.stat().st_size for file in added) < 1000, "two plain images"


def test_load_dataset_does_not_decode_what_an_earlier_study_packed(folder, scratch, monkeypatch):
    load(folder, scratch)
    monkeypatch.setattr("delta_tune.data.reader.open_picture", None)
    assert len(load(folder, scratch).train) == 32


def test_packs_of_another_size_are_others(folder, scratch):
    load(folder, scratch)
    large = Preprocessing(
        image_size=30, stored_size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear"
    )
    load_dataset(folder, preprocessing=large, memory_limit=1000, scratch=str(scratch))
    assert len(list(scratch.iterdir())) == 2


# --------------------------------------------------------------------------------------------------- faults


def largest(scratch):
    return max(files_in(scratch), key=lambda file: file.stat().st_size)


def test_pack_that_was_cut_is_written_again(folder, scratch):
    dataset = load(folder, scratch)
    cut = largest(scratch)
    os.truncate(cut, cut.stat().st_size - 1)
    packs.open_store.cache_clear()
    assert np.array_equal(all_of(dataset.train), expected(dataset.train))
    assert cut not in files_in(scratch)


def test_pack_that_is_cut_while_it_is_open_is_mended(folder, scratch):
    dataset = load(folder, scratch)
    os.truncate(largest(scratch), 100)
    assert np.array_equal(all_of(dataset.train), expected(dataset.train))
    assert np.array_equal(all_of(dataset.train), expected(dataset.train))


def test_image_that_is_damaged_in_its_pack_is_mended(folder, scratch):
    dataset = load(folder, scratch)
    with open(largest(scratch), "r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
    assert np.array_equal(all_of(dataset.train), expected(dataset.train))
    again = load(folder, scratch)
    assert np.array_equal(all_of(again.train), expected(again.train))


def test_index_that_is_damaged_is_written_again(folder, scratch):
    dataset = load(folder, scratch)
    for index in files_in(scratch, "index"):
        index.write_bytes(b"ARROW1" + bytes(100))
    packs.open_store.cache_clear()
    assert np.array_equal(all_of(dataset.train), expected(dataset.train))


def test_load_dataset_refuses_a_disk_without_room(folder, scratch, monkeypatch):
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(packs.shutil, "disk_usage", lambda path: usage._replace(free=packs.SPARE + 1000))
    with pytest.raises(UserError, match=r"^The images need about .* KiB in .*scratch, whose disk has .* free; give a"):
        load(folder, scratch)


def test_load_dataset_refuses_a_disk_that_becomes_full(folder, scratch, monkeypatch):
    def full(self, digest, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(packs.PackWriter, "add", full)
    with pytest.raises(UserError, match=r"cannot be written to .*scratch \(No space left on device\); give a"):
        load(folder, scratch)
    assert not files_in(scratch)
    assert not files_in(scratch, "partial")


def test_load_dataset_refuses_a_scratch_that_is_no_folder(folder, scratch):
    scratch.write_text("")
    with pytest.raises(UserError, match=r"cannot be written to .*scratch \(.*\); give a --scratch"):
        load(folder, scratch)


def test_no_room_stops_a_study_as_a_full_disk_does():
    from delta_tune.cluster.failures import external_cause

    error = pickle.loads(pickle.dumps(packs.NoRoomError("no room", packs.Path("/scratch"))))
    assert external_cause(error) == "No space left on device (/scratch)"


def test_what_was_packed_before_an_interrupt_stays(folder, scratch, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("delta_tune.data.file_keeper.FileKeeper.images", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(folder, scratch)
    assert files_in(scratch)
    dataset = load(folder, scratch)
    assert np.array_equal(all_of(dataset.val), expected(dataset.val))


# ---------------------------------------------------------------------------------------- other nodes and processes


def on_another_node(dataset, scratch):
    """The data set as a process of a node gets it whose disk is empty."""
    copy = pickle.loads(pickle.dumps(dataset))
    shutil.rmtree(scratch)
    packs.open_store.cache_clear()
    return copy


def test_another_node_packs_the_images_at_first_use(folder, scratch):
    dataset = on_another_node(load(folder, scratch), scratch)
    piece = dataset.train.taken(range(4))
    assert np.array_equal(all_of(piece), expected(piece))
    assert sum(file.stat().st_size for file in files_in(scratch)) > 32 * 300, "all of train, not the piece alone"


def test_pack_here_writes_only_what_is_not_there(folder, scratch):
    dataset = on_another_node(load(folder, scratch), scratch)
    for _ in range(2):
        pack_here(resample_splits(dataset, seed=0).train.images)
    assert len(files_in(scratch)) == 2, "train and val"


def test_another_node_that_does_not_see_the_data_says_so(folder, scratch):
    dataset = on_another_node(load(folder, scratch), scratch)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=r"^The images are not on .*, and it cannot read them again \(There is no"):
        all_of(dataset.train)


def test_another_node_refuses_other_data(folder, scratch):
    dataset = on_another_node(load(folder, scratch), scratch)
    Image.new("RGB", (20, 20), "red").save(dataset.train.names[3])
    with pytest.raises(UserError, match=r"^The data is not the same on .* \(image \d+ of train differs\)"):
        all_of(dataset.train)


def test_two_processes_at_once_write_the_images_once(folder, scratch):
    code = f"""
from delta_tune.data.images import Preprocessing
from delta_tune.data.loading import load_dataset
load_dataset({str(folder)!r}, preprocessing={PREPROCESSING!r}, memory_limit=1000, scratch={str(scratch)!r})
"""
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    stored = np.concatenate([packs.Pack(index).digests for index in files_in(scratch, "index")])
    assert len(stored) == len(np.unique(stored)) == 40


def test_a_process_waits_for_another_that_writes(folder, scratch):
    dataset = on_another_node(load(folder, scratch), scratch)
    (place,) = {dataset.train.images.origin.folder}
    os.makedirs(place)
    lock, found = filelock.FileLock(f"{place}/lock"), []
    with lock:
        waiting = threading.Thread(target=lambda: found.append(all_of(dataset.train)))
        waiting.start()
        time.sleep(0.3)
        assert not files_in(scratch)
    waiting.join(30)
    assert np.array_equal(found[0], expected(dataset.train))


def test_what_a_killed_process_was_writing_is_removed(folder, scratch):
    dataset = on_another_node(load(folder, scratch), scratch)
    place = packs.Path(dataset.train.images.origin.folder)
    place.mkdir(parents=True)
    (place / "0.partial").write_bytes(b"half")
    all_of(dataset.train)
    assert not files_in(scratch, "partial")


# ----------------------------------------------------------------------------------------------------- old packs


def test_folders_of_packs_that_nobody_opened_for_long_are_removed(folder, scratch):
    load(folder, scratch)
    (old,) = scratch.iterdir()
    (old / "notes.txt").write_text("the user's own")
    for days, kept in ((packs.KEPT_DAYS - 1, True), (packs.KEPT_DAYS + 1, False)):
        long_ago = time.time() - days * 86400
        os.utime(old / "used", (long_ago, long_ago))
        packs.remove_unused(scratch, keep=scratch / "another")
        assert bool(files_in(scratch)) == kept
    assert [file.name for file in old.iterdir()] == ["notes.txt"]


def test_folder_of_packs_that_is_kept_or_written_to_is_not_removed(folder, scratch):
    load(folder, scratch)
    (old,) = scratch.iterdir()
    os.utime(old / "used", (0, 0))
    packs.remove_unused(scratch, keep=old)
    with filelock.FileLock(old / "lock"):
        packs.remove_unused(scratch, keep=scratch / "another")
    assert files_in(scratch)


def test_packs_are_begun_anew_when_they_are_large(folder, scratch, monkeypatch):
    monkeypatch.setattr(packs, "LARGEST", 5000)
    dataset = load(folder, scratch)
    assert len(files_in(scratch)) > 3
    assert np.array_equal(all_of(dataset.train), expected(dataset.train))
