"""Which delta-tune this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """Such as 1.2.0; "unknown" where the package is not installed but run from its folder."""
    try:
        return version("delta-tune")
    except PackageNotFoundError:
        return "unknown"
