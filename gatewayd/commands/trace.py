"""
Trace context for the services behind routes (W3C Trace Context). Pure.

Decides which trace_id of a client becomes a traceparent. Records no span, and judges nobody by it: a trace_id is not
signed.
"""

import re
from typing import Final

_TRACEPARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
_TRACE: Final = re.compile(r"(?!0{32})[0-9a-f]{32}", re.ASCII)
SPAN_BYTES: Final = 8


def traceparent_of(trace_id: str, span: bytes) -> str | None:
    """
    The traceparent to hand on: `trace_id` itself when it is one (there is no span of ours in between), one made of a
    bare trace id and `span`, 8 random bytes, else None. What is made here is not marked as sampled: whether anything is
    recorded is not the client's to say.
    """
    if _TRACEPARENT.fullmatch(trace_id) is not None:
        return trace_id
    if _TRACE.fullmatch(trace_id) is None or not any(span):
        return None
    return f"00-{trace_id}-{span.hex()}-00"
