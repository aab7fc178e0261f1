"""Another reader of HTTP/1.1, h11, as a witness of what a stream of bytes holds."""

from typing import TypeAlias

import h11

Seen: TypeAlias = list[tuple[bytes, bytes, bytes]]
"""(method, target, body) of requests, in the order of the stream."""


def read_h11(data: bytes) -> Seen:
    """The requests that h11 reads; empty lines before a request and keep-alive in HTTP/1.0 are ours to know."""
    requests: Seen = []
    while data:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=200_000)
        connection.receive_data(data.lstrip(b"\r\n"))
        try:
            head = connection.next_event()
            if not isinstance(head, h11.Request):
                return requests
            body = b""
            while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                if not isinstance(event, h11.Data):
                    return requests
                body += bytes(event.data)
        except h11.RemoteProtocolError:
            return requests
        requests.append((head.method, head.target, body))
        options = {
            option.strip().lower()
            for name, value in head.headers
            if name == b"connection"
            for option in value.split(b",")
        }
        keeps = head.http_version == b"1.1" or b"keep-alive" in options
        if not keeps or b"close" in options or head.method == b"CONNECT":
            return requests
        data = connection.trailing_data[0]
    return requests
