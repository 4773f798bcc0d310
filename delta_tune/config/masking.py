"""Passwords, tokens and keys in text, masked wherever text is shown or written."""

from __future__ import annotations

import re
from urllib.parse import unquote

MASK = "…"
USER_NAME_SCHEMES = frozenset(
    [
        *("postgresql", "postgres", "mysql", "mariadb", "mssql", "oracle", "cockroachdb"),
        *("abfs", "abfss", "hdfs", "viewfs", "ray", "scp", "sftp", "ssh"),
    ]
)
"""Schemes whose `user@` is a name. With any other it may be a token, as in `https://TOKEN@host`."""
BUCKET_SCHEMES = frozenset(("s3", "gs", "gcs"))
"""Schemes without ports: digits after the first colon may begin a secret."""
ENCODINGS = 3
"""How often an address may be percent-encoded, one within another."""
_ADDRESS = re.compile(r"(?<![\w.+-])([a-z][\w.+-]*)://(\S+)", re.IGNORECASE)
_PORT = re.compile(r"\d+[/?#]")
_NO_SCHEME = re.compile(r"(?<![\w/:@.+-])([\w.+-]+):([^\s/\\:@]+)@(?=[\w.-])")
_NAMES = (
    r"[\w.-]*(?:password|passwd|passphrase|passcode|pwd|secret|token|signature|credentials?|bearer|jwt)"
    r"|[\w.-]*(?:access|account|api|auth|encryption|master|private|secret|session|shared|signing)[_-]?key(?:[_-]?id)?"
    r"|[\w.-]*[_-]pass"
)
_NAMES_IN_QUERIES = r"auth|code|key|pass|sas|sig"
_VALUE = rf"\s*=\s*)(?!{MASK})('[^']+'|\"[^\"]+\"|[^&;\s#\"']+)"
_OPTION = re.compile(
    rf"((?:(?<![^?&;,=\s#\"'({{])(?:{_NAMES})|(?<=[?&;#])(?:{_NAMES_IN_QUERIES})){_VALUE}", re.IGNORECASE
)


def mask_secrets(text: str) -> str:
    """`text` with `…` for what may be a password, a token or a key in it.

    Masked are user information of addresses (`scheme://user:password@`, `https://token@`) and options whose names say
    so (`?sslpassword=`, `&X-Amz-Signature=`, `PWD=` in an ODBC string). If they are percent-encoded, the text is
    decoded.
    """
    text = decoded = _masked(text)
    for _ in range(ENCODINGS):
        decoded = unquote(decoded)
        if (masked := _masked(decoded)) != decoded:
            text = decoded = masked
    return text


def _masked(text: str) -> str:
    text = _ADDRESS.sub(_without_user_info, text)
    text = _NO_SCHEME.sub(rf"\1:{MASK}@", text)
    return _OPTION.sub(rf"\1{MASK}", text)


def _without_user_info(found: re.Match[str]) -> str:
    scheme, rest = found[1], found[2]
    base = scheme.partition("+")[0].lower()
    end = re.search(r"[/?#:@[]", rest)
    if end is None or end[0] in "/?#[" or "@" not in rest:
        return found[0]
    user, after = rest[: end.start()], rest[end.end() :]
    if end[0] == "@":
        return found[0] if base in USER_NAME_SCHEMES else f"{scheme}://{MASK}@{after}"
    if base not in BUCKET_SCHEMES and _PORT.match(after):
        return found[0]
    name = user if base in USER_NAME_SCHEMES or not user else MASK
    return f"{scheme}://{name}:{MASK}@{after.rpartition('@')[2]}"
