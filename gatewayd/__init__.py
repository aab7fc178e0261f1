"""
gatewayd: one Twisted daemon between the outside world and a trading platform.

Read top-down; every arrow of a request points the same way:

    tap          twistd's entry: reactor, clocks, settings; then
    config       environment, file and secrets -> frozen Settings, all problems at once
    compose      the wiring diagram: Settings -> the tree of services
    http/        HTTP/1.1 as a server speaks it: framing, channel, message
    ingress/     webhooks: who sent it, was it seen, what does it say, what is stored
    stores/      what admission remembers, bounded; the link to Redis
    bus/         NATS JetStream: the publish lane, the client's life, the stream
    edge         the wiring of what follows, where it is on:
    sessions/    who may speak to the edge: envelopes, signatures, sessions, the order of the checks
    commands/    where a command goes: NATS, HTTP; the public authentication paths
    streams/     Redis Streams, followed from concrete ids
    push/        the hub of long-lived streams; gRPC, WebSocket and SSE, which carry them
    probes       /healthz, /readyz, /metrics
    cli/         gatewayctl

The pure modules (their first lines say so) never meet a reactor, a clock or a driver.
"""

import sys
from pathlib import Path

__version__ = "0.1.0"

PACKAGE = Path(__file__).parent
COMPILED = "compiled.json"
"""Digests of the sources that the compiled modules beside them were made of; absent when there are none."""


def _check_compiled() -> None:
    """ImportError when a compiled module would hide a source that it was not made of, as after an upgrade in place."""
    if not (PACKAGE / COMPILED).exists() or f"{__name__}.compilation" in sys.orig_argv:
        return
    import json
    from hashlib import sha256

    made_of = json.loads((PACKAGE / COMPILED).read_bytes())["sources"]
    for name, digest in made_of.items():
        if sha256((PACKAGE / f"{name}.py").read_bytes()).hexdigest() != digest:
            raise ImportError(
                f"the compiled modules in {PACKAGE} are of other sources: make them again with "
                f"`python -m {__name__}.compilation`, or take them away with its --remove"
            )


_check_compiled()
