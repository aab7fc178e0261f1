"""
`gatewayctl edge`: sessions, events and commands of the edge gateway, as its clients and its neighbours see them.

Decides which commands there are. Nothing that only one of them needs is imported before it runs.
"""

import click

from gatewayd.cli.edge_calls import command, subscribe
from gatewayd.cli.edge_entries import publish, revoke, session
from gatewayd.cli.edge_keys import keys, new_client, new_signer


@click.group()
def edge() -> None:
    """Make keys; publish sessions and events; follow events and send commands as a client does."""


for one in (new_signer, new_client, keys, session, revoke, publish, subscribe, command):
    edge.add_command(one)
