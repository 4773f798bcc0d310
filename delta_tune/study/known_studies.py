"""Which studies this user began here, and with which places: what a resume may use without asking.

A study's folder may come from a stranger, so nothing that is read from it is executed, contacted or written to. The
places of a study (its data, weights, search space, servers) are also kept outside of its folder, under the study's id.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from delta_tune.config import UserError
from delta_tune.filesystem.uris import is_uri
from delta_tune.results.layout import STUDY_FILE
from delta_tune.results.remembered_studies import SAFE, is_safe, text_digest
from delta_tune.results.study_record import StudyRecord
from delta_tune.spaces.space import find_space, shipped_spaces

NEEDED = ("data", "label_map", "weights", "space", "address", "start_from")
"""Those without which a study cannot go on as it was; the others are left out until they are named again."""
SHOWN_CHARACTERS = 200


def is_copy(known: Mapping[str, Any], place: str) -> bool:
    """Whether the study at `place` is a copy of the remembered one, which still lies elsewhere."""
    earlier = str(known["folder"])
    if earlier == place:
        return False
    if is_uri(earlier) or is_uri(place):
        return True
    try:
        original = StudyRecord.read(Path(earlier))
    except (UserError, OSError):  # it was moved here
        return False
    return original.study_id is not None and original.study_id == StudyRecord.read(Path(place)).study_id


def settings_to_resume(
    record: StudyRecord, given: Mapping[str, Any], known: Mapping[str, Any] | None, study: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The settings of a study to resume, without the places that only its folder names.

    Args:
        record: of the study, which anybody may have written.
        given: settings that the user gives now; they take precedence.
        known: what is remembered of the study.
        study: the study, for messages.

    Returns:
        The settings, and sentences for the plan about what is left out.

    Raises:
        UserError: the user must name some places again.
    """
    settings = dict(record.settings)
    unsure = [name for name in SAFE if name in settings and name not in given]
    unsure = [name for name in unsure if not is_safe(name, settings[name])]
    if record.start_from is not None:  # its configurations were noted: its folder is not read again
        unsure = [name for name in unsure if name != "start_from"]
    if "space" in unsure and (shipped := _shipped_space(record.space)) is not None:
        settings["space"] = shipped
        unsure.remove("space")
    if known is not None:
        same_text = known["space_text"] == text_digest(record.space)
        unsure = [
            name
            for name in unsure
            if settings[name] != known["places"].get(name) or (name == "space" and not same_text)
        ]
    if needed := [name for name in NEEDED if name in unsure]:
        flags = " ".join(f"--{name.replace('_', '-')} {_shown(settings[name])}" for name in needed)
        raise UserError(
            f"{study} was not begun by you on this machine, or its study.json was changed since: what it names is not "
            f"used unasked. If you trust it, give these flags too: {flags}"
        )
    notes = []
    for name in unsure:
        notes.append(
            f"{STUDY_FILE} also names --{name} {_shown(settings[name])}, which is not used unless you give it."
        )
        settings[name] = None
    return settings, tuple(notes)


def check_space_text(record: StudyRecord, space: Any, study: str, name: str) -> None:
    """Compare the text of a space with that of the study to resume, before any of it is executed.

    Args:
        record: of the study.
        space: its file; a function, or None for those of the networks, whose text is compared later.
        study: the study, for messages.
        name: its name, for messages.

    Raises:
        UserError: they differ, or there is no such file of text.
    """
    if space is None or callable(space):
        return
    file = find_space(space)
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The space {file} cannot be read ({error}); restore it.") from error
    check_same_text(record.space, text, study, file.name, name)


def check_same_text(was: str, now: str, study: str, space: str, name: str) -> None:
    """Check that a space's text is still the same.

    Raises:
        UserError: it is not; names the first difference.
    """
    if was == now:
        return
    lines = difflib.ndiff(was.splitlines(), now.splitlines())
    difference = next((line for line in lines if line[0] in "+-"), "")
    raise UserError(
        f"{study} cannot be resumed: the search space {space} changed since, first {difference!r}; restore it, or "
        f"start a new study, with --start-from {name} to begin with what this one found."
    )


def _shipped_space(text: str) -> str | None:
    """The shipped space of this text."""
    return next((str(file) for file in shipped_spaces() if file.read_text() == text), None)


def _shown(value: Any) -> str:
    """A value from a study's folder as the user would have to type it; control characters are escaped."""
    text = str(value)[:SHOWN_CHARACTERS]
    return shlex.quote(text) if text.isprintable() else ascii(text)
