"""
The settings of the Redis that webhooks' admission may share. Pure.

Decides what REDIS_URL may be and how it is shown: without its password. Never connects.
"""

from typing import Final

from gatewayd import settings_values as values
from gatewayd.settings_row import Row
from gatewayd.settings_values import Kind, Wrong
from gatewayd.stores.redisplace import ALLOWED, RedisPlace, parse_redis_url


def redis_url() -> Kind:
    """One server and database: a RedisPlace."""

    def parse(items: tuple[str, ...]) -> object:
        return parse_redis_url(items[0]) or Wrong()

    def show(place: RedisPlace) -> str:
        return place.url

    return Kind(ALLOWED, parse, show, private=bool)


ROWS: Final[tuple[Row, ...]] = (
    Row(
        "REDIS_URL",
        redis_url(),
        None,
        "a Redis or Valkey that several gatewayd share: used nonces and sources' rates then hold for all of them",
        "each gatewayd remembers for itself",
        secret=True,
        filed=True,
    ),
    Row("REDIS_TLS_CA", values.path(), None, "PEM certificates of the authority that signed a rediss:// server's"),
)
