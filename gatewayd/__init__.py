"""
gatewayd: one Twisted daemon between the outside world and a trading platform.

Read top-down; every arrow of a request points the same way:

    tap          twistd's entry: reactor, clocks, settings; then
    config       environment, file and secrets -> frozen Settings, all problems at once
    compose      the wiring diagram: Settings -> the tree of services
    http/        HTTP/1.1 as a server speaks it: framing, channel, message
    ingress/     webhooks: who sent it, was it seen, what does it say, what is stored
    stores/      what admission remembers, bounded
    bus/         NATS JetStream: the publish lane, the client's life, the stream
    probes       /healthz, /readyz, /metrics
    cli/         gatewayctl

The pure modules (their first lines say so) never meet a reactor, a clock or a driver.
"""

__version__ = "0.1.0"
