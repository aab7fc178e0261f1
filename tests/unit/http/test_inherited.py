"""Sockets that a process is started with: what the three variables say, and what an address means of it."""

import re

import pytest

from gatewayd.http.addresses import Address, parse_address
from gatewayd.http.inherited import Inherited, read_inherited

PID = 4711


def passed(count: str, names: str | None = None, pid: str = str(PID)) -> Inherited:
    """What a process 4711 makes of these variables."""
    environ = {"LISTEN_FDS": count, "LISTEN_PID": pid, "HOME": "/"}
    return read_inherited(environ if names is None else {**environ, "LISTEN_FDNAMES": names}, PID)


def address(text: str) -> Address:
    return parse_address(f"systemd:domain=INET:{text}")


def test_names_and_indexes() -> None:
    """A name means every socket of a unit that has it, an index one; descriptors begin with 3."""
    found = passed("3", "public:admin:public")
    assert found.names == ("public", "admin", "public")
    assert found.descriptors(address("name=public")) == (3, 5)
    assert found.descriptors(address("name=admin")) == (4,)
    assert found.descriptors(address("index=0")) == (3,)
    assert found.descriptors(address("index=2")) == (5,)


def test_without_names() -> None:
    """Without LISTEN_FDNAMES they are all called unknown, as sd_listen_fds_with_names(3) calls them."""
    assert passed("2").names == ("unknown", "unknown")
    assert passed("2").descriptors(address("index=1")) == (4,)


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (read_inherited({}, PID), "LISTEN_FDS is not set, so that no socket unit has started it"),
        (passed("1", "public", pid="1"), "LISTEN_PID is '1' and this process is 4711"),
        (passed("1", "public", pid=""), "LISTEN_PID is '' and this process is 4711"),
        (passed("0", ""), "LISTEN_FDS is '0', and not a number from 1 to 1024"),
        (passed("1025", "a" + ":a" * 1024), "LISTEN_FDS is '1025'"),
        (passed("-1", "public"), "LISTEN_FDS is '-1'"),
        (passed("\u0663", "a:b:c"), "and not a number from 1 to 1024"),
        (passed("9" * 5000, "public"), "and not a number from 1 to 1024"),
        (passed("2", "public"), "LISTEN_FDS is 2 and LISTEN_FDNAMES has 1 names"),
        (passed("1", "admin"), "there is 'admin'"),
    ],
)
def test_none(found: Inherited, why: str) -> None:
    """An address that means no socket is named, with what there is instead."""
    wanted = address("name=public")
    with pytest.raises(ValueError, match=re.escape(why)) as caught:
        found.descriptors(wanted)
    assert str(caught.value).startswith("systemd:domain=INET:name=public: no such socket was passed to this process: ")
    assert len(str(caught.value)) < 300
