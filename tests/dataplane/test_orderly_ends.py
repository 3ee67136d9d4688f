"""What is left of a connection after its end: nothing of the client's answer is lost, nothing of its memory is kept."""

from __future__ import annotations

import random

import pytest

from autoforward.dataplane.messages import RelayEnded
from autoforward.dataplane.times import Times
from tests.support.containers import eventually
from tests.support.plane_rig import TIMEOUT_S, read_all, rig

pytestmark = pytest.mark.local


def test_bytes_in_the_kernel_survive_an_orderly_end() -> None:
    """A client's socket resets when it is closed, until the server has ended in order: then nothing may be thrown away."""
    with rig(times=Times(linger_s=0.05)) as here:
        client, far = here.relay()
        answer = random.Random(8).randbytes(600_000)
        far.stdout(answer)
        far.exit()
        assert here.expect(RelayEnded).reason is None
        eventually(lambda: not here.plane._loop._owned, timeout_s=TIMEOUT_S, what="the client's socket is closed")
        assert read_all(client) == answer
