"""Where an engine pool's requests come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from medssr_dist.runtime.requests import Request


class Work(Protocol):
    """Where the requests come from."""

    @property
    def ended(self) -> bool:
        """Nothing will be asked any more; also not once what is out has come back."""

    @property
    def left(self) -> int | None:
        """Samples that can still be asked for, where no new questions are to come; None = plenty."""

    def next(self, most: int) -> Request | None:
        """The next request, of at most `most` samples; None = nothing to ask now."""

    def spare(self, most: int) -> Request | None:
        """Samples that may turn out to be needed, for an engine that would idle."""

    def unwanted(self) -> list[str]:
        """Keys whose samples on the way are no longer wanted, each told once."""


class Listed:
    """A plain list of requests as a source of work."""

    left = None

    def __init__(self, requests: Iterator[Request]):
        self._requests = requests
        self.asked: dict[str, int] = {}
        self.ended = False

    def next(self, most: int) -> Request | None:
        request = next(self._requests, None)
        self.ended = request is None
        if request:
            self.asked[request.key] = request.n
        return request

    def spare(self, most: int) -> None:
        return None

    def unwanted(self) -> list[str]:
        return []
