"""What a run of the benchmark found, section by section, and how it reads: a dict for JSON and a page of Markdown."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["passed", "failed", "not run"]


@dataclass(kw_only=True)
class Section:
    """One section of the benchmark: its figures, and what went wrong in it."""

    name: str
    state: State = "passed"
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Figures: column → number, string or bool."""
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """Checks that do not hold, or the error that ended the section."""
    traceback: str = ""

    def row(self, **values: Any) -> None:
        """Add figures; `_` in a name is read as a space."""
        self.rows.append({name.replace("_", " "): value for name, value in values.items()})

    def check(self, holds: bool, otherwise: str) -> None:
        """Fail the section, and go on in it, unless `holds`; `otherwise` says what is wrong."""
        if not holds:
            self.fail(otherwise)

    def fail(self, failure: str) -> None:
        """Fail the section for this reason."""
        self.state = "failed"
        self.failures.append(failure)

    def end_with(self, error: BaseException) -> None:
        """Fail the section because of an exception."""
        self.fail("".join(traceback.format_exception_only(error)).strip())
        self.traceback = "".join(traceback.format_exception(error))


def page(result: Mapping[str, Any]) -> str:
    """The Markdown page of a result as `benchmarks/gpu.py` writes it to JSON."""
    sections = result["sections"]
    by_state = {
        state: [s["name"] for s in sections if s["state"] == state] for state in ("failed", "not run", "passed")
    }
    lines = ["# The benchmark of one GPU", ""]
    lines += [f"- {name}: {_cell(value)}" for name, value in result["facts"].items()]
    lines += [f"- {state}: {', '.join(names)}" for state, names in by_state.items() if names]
    for section in sections:
        lines += ["", f"## {section['name']}: {section['state']}, {section['seconds']:.1f} s", ""]
        lines += [f"- **failed**: {_cell(failure)}" for failure in section["failures"]]
        lines += [f"- {_cell(note)}" for note in section["notes"]]
        if section["rows"]:
            lines += (
                ["", *_table(section["rows"])] if section["failures"] or section["notes"] else _table(section["rows"])
            )
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(_cell(row.get(column)) for column in columns) + " |"


def _cell(value: Any) -> str:
    """A value on one line that cannot end a cell of a table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(str(value).split()).replace("|", "\\|")
