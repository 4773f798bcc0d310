"""Check that Ray answers at an address before joining it: Ray itself would wait for a dead head or a wrong token."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys

from delta_tune.config import UserError

CONNECT_TIMEOUT_S = 5.0
STATUS_TIMEOUT_S = 12.0
"""For `ray status`, which takes 1.2 s on two idle cores."""
_STATUS = "from ray.scripts.scripts import main; main()"


def check_address(address: str) -> None:
    """Check within 20 s that Ray answers at `address`.

    Args:
        address: `auto`, `host:port` or `ray://host:port`.

    Raises:
        UserError: nothing answers, or Ray there expects another token.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
        except OSError as error:
            raise UserError(
                f"--address {address}: nothing answers there ({error}); start Ray with `ray start --head`, "
                f"or leave --address out to use this machine."
            ) from error
    if not address.startswith("ray://"):  # Ray Client speaks another protocol
        _ask_status(address)


def _ask_status(address: str) -> None:
    """Run `ray status` in a subprocess: Ray's C++ code writes to the terminal and retries for 20 s."""
    command = [sys.executable, "-c", _STATUS, "status", "--address", address]
    environment = os.environ | {"RAY_py_gcs_connect_timeout_s": "4"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=STATUS_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"--address {address}: something listens there but did not answer like Ray within "
            f"{STATUS_TIMEOUT_S:g} s; give the address that `ray start --head` printed."
        ) from error
    output = done.stdout + done.stderr
    if "InvalidAuthToken" in output or "authentication token" in output:
        given = "the token given here is a different one" if _has_token() else "none is given here"
        raise UserError(
            f"--address {address}: Ray there expects a token, and {given}; set RAY_AUTH_MODE=token and "
            f"RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds it, as on its head node."
        )
    if "Could not find any running Ray instance" in output:
        raise UserError(
            f"--address {address}: Ray is not running on this machine; start one with `ray start --head`, give "
            f"host:port, or leave --address out."
        )


def _has_token() -> bool:
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return False
    default = os.path.join(os.path.expanduser("~"), ".ray", "auth_token")
    return "RAY_AUTH_TOKEN" in os.environ or os.path.exists(os.environ.get("RAY_AUTH_TOKEN_PATH", default))


def version_mismatch(message: str) -> str | None:
    """A sentence for Ray's version-mismatch error; None for any other error."""
    versions = re.findall(r"(Ray|Python): (\S+)", message)
    if "Version mismatch" not in message or len(versions) != 4:
        return None
    (_, ray), (_, python), (_, own_ray), (_, own_python) = versions
    return (
        f"the cluster runs Ray {ray} on Python {python}, but this process Ray {own_ray} on Python {own_python}; "
        f"install the same on both."
    )
