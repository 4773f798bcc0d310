"""Whether a Ray answers at an address. Ray itself waits for a head that is gone, or that does not know its token."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys

from delta_tune.config import UserError

CONNECT_TIMEOUT_S = 5.0
KNOCK_TIMEOUT_S = 12.0
"""Of `ray status`, which takes 1.2 s on two idle cores."""
_STATUS = "from ray.scripts.scripts import main; main()"


def check_address(address: str) -> None:
    """See that Ray answers there, within 20 s.

    Args:
        address: `auto`, `host:port` or `ray://host:port`.

    Raises:
        UserError: nothing answers, or what answers wants another token.
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
    if not address.startswith("ray://"):  # there another protocol is spoken
        _ask_status(address)


def _ask_status(address: str) -> None:
    """In a process of its own: Ray's C++ part writes its complaints to the terminal, and tries for 20 s."""
    command = [sys.executable, "-c", _STATUS, "status", "--address", address]
    environment = os.environ | {"RAY_py_gcs_connect_timeout_s": "4"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=KNOCK_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"--address {address}: what listens there did not answer as Ray does within {KNOCK_TIMEOUT_S:g} s; give "
            f"the address that `ray start --head` printed."
        ) from error
    said = done.stdout + done.stderr
    if "InvalidAuthToken" in said or "authentication token" in said:
        given = "the token given here is another" if _has_token() else "none is given here"
        raise UserError(
            f"--address {address}: that Ray wants its token, and {given}; set RAY_AUTH_MODE=token and "
            f"RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds it, as on its head node."
        )
    if "Could not find any running Ray instance" in said:
        raise UserError(
            f"--address {address}: no Ray runs on this machine; start one with `ray start --head`, give host:port, or "
            f"leave --address out."
        )


def _has_token() -> bool:
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return False
    default = os.path.join(os.path.expanduser("~"), ".ray", "auth_token")
    return "RAY_AUTH_TOKEN" in os.environ or os.path.exists(os.environ.get("RAY_AUTH_TOKEN_PATH", default))


def version_mismatch(message: str) -> str | None:
    """Ray's word of versions that differ, in a sentence; None where it speaks of something else."""
    found = re.findall(r"(Ray|Python): (\S+)", message)
    if "Version mismatch" not in message or len(found) != 4:
        return None
    (_, ray), (_, python), (_, own_ray), (_, own_python) = found
    return (
        f"the cluster runs Ray {ray} on Python {python}, but this process Ray {own_ray} on Python {own_python}; "
        f"install the same on both."
    )
