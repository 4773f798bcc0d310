"""Addresses among the settings: none may hold a secret, which the study would write down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from delta_tune.config.errors import UserError
from delta_tune.config.masking import mask_secrets

INSTEAD = {
    "storage": "set what the database's client reads, such as PGPASSWORD or ~/.pgpass for PostgreSQL",
    "mlflow": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN (a database's own, "
    "such as PGPASSWORD)",
    "address": "set RAY_AUTH_TOKEN_PATH",
}
"""Setting → what to do with its secret."""
INSTEAD_ELSEWHERE = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what your storage has"

ADDRESSES = ("data", "model", "weights", "label_map", "address", "out", "cache", "start_from", "wandb")
"""Settings that may be addresses, beside those of which all text is one."""
ALWAYS = ("storage", "mlflow")
"""Settings of which any text is an address or a connection string."""


def refuse_secrets(settings: Mapping[str, Any]) -> None:
    """Refuse settings whose address holds a password, a token or a key.

    Raises:
        UserError: see `refuse_secret`.
    """
    for name in (*ADDRESSES, *ALWAYS):
        address = str(settings.get(name) or "")
        if name in ALWAYS or "://" in address:
            refuse_secret(name, address)


def refuse_secret(setting: str, address: str) -> None:
    """Refuse an address that holds a password, a token or a key: the study would write it down.

    Args:
        setting: its name, such as `storage`.
        address: an address or a connection string.

    Raises:
        UserError: it holds one, which the message does not repeat.
    """
    together = "".join(address.split())  # a secret with a blank is one too
    for text in (address, together):
        if (masked := mask_secrets(text)) != text:
            raise UserError(
                f"--{setting.replace('_', '-')} {masked} holds a password or a token, which study.json would show; "
                f"leave it out and {INSTEAD.get(setting, INSTEAD_ELSEWHERE)} instead."
            )
