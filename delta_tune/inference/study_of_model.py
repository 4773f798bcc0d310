"""The study that a model comes from: `study.json` beside its `best/`."""

from __future__ import annotations

from pathlib import Path

from delta_tune.config import UserError
from delta_tune.filesystem.untrusted import JSON_BYTES, parse_json, refusing
from delta_tune.filesystem.uris import is_uri, open_filesystem, read_regular
from delta_tune.results.layout import BEST, STUDY_FILE
from delta_tune.results.study_record import StudyRecord
from delta_tune.results.study_schema import StudyContent


def study_of_model(folder: str | Path, what: str) -> tuple[str, StudyRecord]:
    """The folder or address of the study that `load` finds the model of, and its record.

    Args:
        folder: the study's, or its `best/`, as for `load`.
        what: the images that are not known without the study, in words.

    Raises:
        UserError: there is no study, or its record is damaged.
    """
    filesystem, root = open_filesystem(folder, "load")
    given, root = str(folder).rstrip("/"), root.rstrip("/")
    places = [(given, root)]
    if root.rpartition("/")[2] == BEST:
        above = given.rpartition("/")[0] if is_uri(given) else root.rpartition("/")[0]
        places.append((above, root.rpartition("/")[0]))
    for place, path in places:
        with refusing(Path(path) / STUDY_FILE, f"the study's {what} images are not known without it"):
            content = read_regular(filesystem, f"{path}/{STUDY_FILE}", JSON_BYTES)
            if content is not None:
                return place, StudyRecord(parse_json(content, StudyContent))
    raise UserError(
        f"There is no {STUDY_FILE} in {folder}, which tells where the {what} images are; give the study's own folder."
    )
