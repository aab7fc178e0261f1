"""
The programs of a host that a test cannot have, as commands: `python -m tests.seeds.wrapped PROGRAM ARGUMENT...`.

systemctl, docker, journalctl and telnet are asked of the test's host, which starts and stops real processes. `nats`
makes the JetStream calls of the command line client with the official Python client: same effects, not its layout.
Decides nothing about the gateway.
"""

import asyncio
import json
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

import nats
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

SOCKET = "GATEWAYD_TEST_HOST"


def ask_host(program: str, arguments: Sequence[str]) -> int:
    """Have the host do it; its words, and its status."""
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(os.environ[SOCKET])
        channel.sendall(json.dumps([program, *arguments]).encode() + b"\n")
        answer: dict[str, Any] = json.load(channel.makefile())
    sys.stdout.write(answer["said"])
    return int(answer["status"])


async def call_nats(arguments: Sequence[str]) -> int:
    """One command of the NATS client."""
    words = [word for word in arguments if not word.startswith("-")]
    options = dict(word.removeprefix("--").split("=", 1) for word in arguments if "=" in word and word.startswith("--"))
    user = options.get("user", os.environ["NATS_USER"])
    client = await nats.connect(
        os.environ["NATS_URL"], user=user, password=options.get("password", os.environ["NATS_PASSWORD"])
    )
    try:
        return await _do(client, words, "--json" in arguments)
    finally:
        await client.close()


async def _do(client: Client, words: Sequence[str], as_json: bool) -> int:
    api = client.jetstream()
    match words:
        case ["server", "ping"]:
            _show(json.loads((await client.request("$SYS.REQ.SERVER.PING", b"")).data)["server"])
        case ["server", "info"]:
            _show(json.loads((await client.request("$SYS.REQ.SERVER.PING.VARZ", b"")).data)["server"])
        case ["stream", "ls" | "report"]:
            for stream in await api.streams_info():
                print(stream.config.name, stream.state.messages, stream.state.bytes)
        case ["stream", "info", name]:
            _show((await api.stream_info(name)).as_dict())
        case ["stream", "purge", name]:
            await api.purge_stream(name)
        case ["consumer", *rest]:
            await _do_consumer(client.jetstream(), rest, as_json)
        case ["sub", subject]:
            subscription = await client.subscribe(subject)
            message = await subscription.next_msg(timeout=20)
            print(f"Received on {message.subject!r}")
            print(message.data.decode())
        case ["pub", subject, text]:
            await client.publish(subject, text.encode())
            await client.flush()
        case _:
            print(f"nats: no such command: {' '.join(words)}", file=sys.stderr)
            return 1
    return 0


async def _do_consumer(api: JetStreamContext, words: Sequence[str], as_json: bool) -> None:
    match words:
        case ["ls" | "report", name]:
            for consumer in await api.consumers_info(name):
                print(consumer.name, consumer.num_pending)
        case ["info", name, durable]:
            found = (await api.consumer_info(name, durable)).as_dict()
            if as_json:
                print(json.dumps(found, default=str))
            else:
                _show(found)
        case ["rm", name, durable]:
            await api.delete_consumer(name, durable)
        case ["add", name, durable]:
            config = ConsumerConfig(
                durable_name=durable,
                ack_policy=AckPolicy.EXPLICIT,
                filter_subject="signals.normalized",
                max_ack_pending=10,
                ack_wait=30,
            )
            await api.add_consumer(name, config)


def _show(members: dict[str, Any]) -> None:
    for name, value in members.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    program, *rest = sys.argv[1:]
    sys.exit(asyncio.run(call_nats(rest)) if program == "nats" else ask_host(program, rest))
