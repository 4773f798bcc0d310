import pytest

from delta_tune.config import DATA_OPTIONS, StudyConfig, UserError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *((None, None), (0, 0), (1000, 1000), ("1000", 1000), ("512B", 512)),
        *(("8GB", 8_000_000_000), ("8 gb", 8_000_000_000), ("8g", 8_000_000_000), ("8GiB", 8 * 2**30)),
        *(("1.5MB", 1_500_000), ("2kib", 2048), ("1TB", 10**12), (" 3MiB ", 3 * 2**20)),
    ],
)
def test_study_config_memory_in_bytes(text, size):
    assert StudyConfig(memory=text).memory_bytes == size


@pytest.mark.parametrize("text", ["", "much", "-1", "8XB", "GB", "8 i", "1e9", "nan", True, -5, float("nan")])
def test_study_config_refuses_what_is_no_memory(text):
    with pytest.raises(UserError, match=r"^memory must be like 500MB, 8GB or 8GiB, but got"):
        StudyConfig(memory=text)


@pytest.mark.parametrize("place", ["s3://bucket/folder", ""])
def test_study_config_refuses_a_scratch_that_is_no_folder_of_a_node(place):
    with pytest.raises(UserError, match=r"^scratch must be a folder on the disk of each node, but got"):
        StudyConfig(scratch=place)


def test_memory_and_scratch_are_no_options_of_the_data():
    """They change where images are kept: a report does not list them, and a resume may change them."""
    assert not {"memory", "scratch"} & set(DATA_OPTIONS)
