"""A request that is not answered with predictions."""

from __future__ import annotations

RETRY_AFTER_S = 1


class Refusal(Exception):
    """A status and one sentence, for a client."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status

    @property
    def headers(self) -> dict[str, str]:
        """What the answer says beside its sentence."""
        return {"Retry-After": str(RETRY_AFTER_S)} if self.status == 503 else {}


class Busy(Refusal):
    """There is no room for the request now."""

    def __init__(self, what: str) -> None:
        super().__init__(503, f"The server is busy ({what}); send the request again in a second.")
