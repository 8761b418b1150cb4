"""The gateways a runner serves, each with the memory it shares, and the requests they wait for."""

import mmap
import os
from dataclasses import dataclass, field

from app.domain.errors import OctetError
from app.domain.runners import Answer, Closing, Refusal
from workers.runners.computing import Asked
from workers.runners.connection import Connection

LONGEST_ERROR = 2000


@dataclass(slots=True)
class Peer:
    """One gateway, with the memory it shares.

    Attributes:
        running: how many of its requests are computed now.
        lost: whether it has not read for so long that an answer could not be sent. Its connection ends as soon as
            nothing is written into its memory any more.
    """

    connection: Connection
    segments: dict[int, mmap.mmap] = field(default_factory=dict)
    running: int = 0
    lost: bool = False

    def send(self, message: Answer | Refusal | Closing, *, descriptor: int | None = None) -> None:
        """Send, unless the gateway is lost; who does not take this is."""
        if self.lost:
            if descriptor is not None:
                os.close(descriptor)
        elif not self.connection.send(message, descriptor=descriptor):
            self.lost = True
            self.end_if_lost()

    def end_if_lost(self) -> None:
        """Hang up on a lost gateway once none of its requests is computed."""
        if self.lost and not self.running:
            self.connection.hang_up()


@dataclass(frozen=True, slots=True)
class Waiting:
    """One request, and whose it is."""

    peer: Peer
    asked: Asked

    def refuse(self, error: OctetError) -> None:
        """Tell the gateway why there is no answer."""
        self.peer.send(Refusal(id=self.asked.request.id, code=error.code, message=error.message[:LONGEST_ERROR]))
