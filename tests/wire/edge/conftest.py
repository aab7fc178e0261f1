"""What the wire tests of the edge share: real Valkey servers."""

from tests.valkey import make_valkey, own_valkey, session_valkey, valkey

__all__ = ["make_valkey", "own_valkey", "session_valkey", "valkey"]
