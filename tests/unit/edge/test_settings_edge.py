"""The edge's settings: five that switch it on, what the others are, and what follows for the listeners."""

import typing
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

from gatewayd.commands.routes import RouteSpec
from gatewayd.config import Secret, Settings, changes, describe
from gatewayd.http.addresses import Address, Kind
from gatewayd.ingress.admission import Limit
from gatewayd.settings_edge import REQUIRED, ROWS, EdgeSettings, HostPort
from tests.unit.settings_case import HOME, PRODUCTION, SettingsCase, load_from
from tests.unit.test_config import conforms

PASSWORD = "redis-Pq7vT2mXw9Lr4Ks8Nd1Yb6Hc3Jp5"
FIVE: Mapping[str, str] = {
    "GATEWAY_REDIS_MASTER_ADDR": "redis.internal:6379",
    "GATEWAY_REDIS_PASSWORD": PASSWORD,
    "GATEWAY_SESSION_EVENTS_REDIS_STREAM": "session_events",
    "GATEWAY_CLIENT_EVENTS_REDIS_STREAM": "client_events",
    "GATEWAY_RESPONSE_SIGNER_PRIVATE_KEY_PEM_PATH": "/etc/gatewayd/signer.pem",
}
EDGE = {**HOME, **FIVE}


class EdgeCase(SettingsCase):
    """Settings with the five."""

    def edge(self, more: Mapping[str, str] = FIVE) -> EdgeSettings:
        found = self.settings({**EDGE, **more}).edge
        assert found is not None
        return found


class SwitchTest(EdgeCase):
    """On with all five, off with none, refused in between."""

    def test_off(self) -> None:
        """Without any of the five there is no edge, and one port."""
        found = self.settings(HOME)
        self.assertIsNone(found.edge)
        self.assertEqual(found.gateway_public_http_addr, (Address(Kind.TCP, "127.0.0.1", 8001),))

    def test_on(self) -> None:
        """With the five: every other setting has the default that is promised."""
        found = self.edge()
        for name, value in {
            "gateway_redis_master_addr": HostPort("redis.internal", 6379),
            "gateway_redis_password": Secret(PASSWORD.encode()),
            "gateway_redis_db": 0,
            "gateway_redis_replica_addrs": (),
            "gateway_redis_operation_timeout": 0.25,
            "gateway_session_events_redis_stream": "session_events",
            "gateway_client_events_redis_stream": "client_events",
            "gateway_session_redis_key_prefix": "gateway:session:",
            "gateway_replay_redis_key_prefix": "gateway:replay:",
            "gateway_replay_redis_reserve_timeout": 0.25,
            "gateway_response_signer_private_key_pem_path": Path("/etc/gatewayd/signer.pem"),
            "gateway_response_signer_previous_key_pem_path": None,
            "gateway_freshness_window": 300.0,
            "gateway_authenticated_grpc_addr": (Address(Kind.TCP, "127.0.0.1", 9090),),
            "gateway_command_routes": (),
            "gateway_auth_service_base_url": None,
            "gateway_push_queue_events": 256,
            "gateway_push_queue_bytes": 1048576,
            "gateway_push_heartbeat": 15.0,
            "gateway_push_allowed_origins": (),
            "gateway_signals_grants": "",
        }.items():
            self.assertEqual(getattr(found, name), value, name)

    def test_some_are_refused(self) -> None:
        """Any of the five without the others is one problem, which names those that are missing and no others."""
        for name in REQUIRED:
            (found,) = self.problems({**HOME, name: FIVE[name]})
            self.assertTrue(found.startswith(f"{name}: needs "), found)
            for other in REQUIRED:
                self.assertEqual(f" {other} " in found, other != name, found)
            (found,) = self.problems({key: value for key, value in EDGE.items() if key != name})
            self.assertIn(f"needs {name} beside it", found)

    def test_an_empty_one_is_missing(self) -> None:
        """A password that is empty is one that was forgotten."""
        self.assert_problem(self.problems({**EDGE, "GATEWAY_REDIS_PASSWORD": ""}), "needs GATEWAY_REDIS_PASSWORD")

    def test_a_wrong_one_is_not_missing(self) -> None:
        """One of the five that is there and wrong is said as it is, and not called missing."""
        found = self.problems({**EDGE, "GATEWAY_REDIS_MASTER_ADDR": "redis"})
        self.assert_problem(found, "GATEWAY_REDIS_MASTER_ADDR=redis: host:port")

    def test_others_alone(self) -> None:
        """Settings of the edge do not switch it on; a note says that they do nothing, and the dump shows them empty."""
        loaded = load_from({**HOME, "GATEWAY_PUSH_HEARTBEAT": "5s"}, strict=True)
        self.assertEqual((loaded.problems, loaded.warnings), ((), ()))
        self.assertEqual(loaded.notes, ("GATEWAY_PUSH_HEARTBEAT has no effect: the edge is off",))
        assert loaded.settings is not None
        self.assertIsNone(loaded.settings.edge)
        self.assertIn("GATEWAY_REDIS_DB=  # default", describe(loaded).splitlines())

    def test_streams_and_prefixes_differ(self) -> None:
        """Two streams of one name, or two kinds of keys under one prefix, are refused."""
        name = "GATEWAY_CLIENT_EVENTS_REDIS_STREAM"
        self.assert_problem(self.problems({**EDGE, name: "session_events"}), f"{name}=session_events: another one than")
        name = "GATEWAY_REPLAY_REDIS_KEY_PREFIX"
        self.assert_problem(self.problems({**EDGE, name: "gateway:session:"}), f"{name}=gateway:session:: another one")


class ValuesTest(EdgeCase):
    """What the settings may be."""

    def test_every_value_has_its_declared_type(self) -> None:
        """Each row of the group fills the field of its name with a value of the type that the field declares."""
        full = {
            "GATEWAY_REDIS_REPLICA_ADDRS": "a:1,[::1]:2",
            "GATEWAY_RESPONSE_SIGNER_PREVIOUS_KEY_PEM_PATH": "/old.pem",
            "GATEWAY_AUTH_SERVICE_BASE_URL": "http://auth",
            "GATEWAY_COMMAND_ROUTES": "a=nats:b",
            "GATEWAY_PUSH_ALLOWED_ORIGINS": "https://a",
            "GATEWAY_SIGNALS_GRANTS": "u: *",
        }
        hints = typing.get_type_hints(EdgeSettings)
        for environ in ({}, full):
            found = self.edge(environ)
            for name, hint in hints.items():
                self.assertTrue(conforms(getattr(found, name), hint), f"{name}: {getattr(found, name)!r}")
        self.assertEqual({field.name for field in fields(EdgeSettings)}, {row.field for row in ROWS})

    def test_redis_addresses(self) -> None:
        """Host and port, an IPv6 address in brackets; nothing else, and what may be a password is not repeated."""
        found = self.edge({"GATEWAY_REDIS_MASTER_ADDR": "[::1]:6380"}).gateway_redis_master_addr
        self.assertEqual((found, str(found)), (HostPort("::1", 6380), "[::1]:6380"))
        for text in (
            "redis",
            "redis:",
            "redis:0",
            "redis:65536",
            "::1:6379",
            "[::g]:1",
            "-a:1",
            "redis:\uff16379",
            "a b:1",
        ):
            self.assert_problem(self.problems({**EDGE, "GATEWAY_REDIS_MASTER_ADDR": text}), "host:port")
        for name in ("GATEWAY_REDIS_MASTER_ADDR", "GATEWAY_REDIS_REPLICA_ADDRS"):
            (found_problem,) = self.problems({**EDGE, name: f"redis://:{PASSWORD}@h:1"})
            self.assertNotIn(PASSWORD[:8], found_problem)

    def test_the_password_may_stand_in_a_file(self) -> None:
        """A file, or a credential of that name; two forms of it are an error, and no form is ever shown."""
        bare = {name: text for name, text in EDGE.items() if name != "GATEWAY_REDIS_PASSWORD"}
        files = {"/p": f"{PASSWORD}\n".encode(), "/creds/GATEWAY_REDIS_PASSWORD": PASSWORD.encode()}
        for more in ({"GATEWAY_REDIS_PASSWORD_FILE": "/p"}, {"CREDENTIALS_DIRECTORY": "/creds"}):
            loaded = load_from({**bare, **more}, None, files)
            assert loaded.settings is not None
            assert loaded.settings.edge is not None
            self.assertEqual(loaded.settings.edge.gateway_redis_password, Secret(PASSWORD.encode()))
            self.assertIn(Secret(PASSWORD.encode()), loaded.settings.all_secrets())
            self.assertIn(f"GATEWAY_REDIS_PASSWORD=<set: 1 secret, {len(PASSWORD)} bytes>", describe(loaded))
            self.assertNotIn(PASSWORD[3:12], repr(loaded) + describe(loaded))
        twice = self.problems({**EDGE, "GATEWAY_REDIS_PASSWORD_FILE": "/p"}, None, files=files)
        self.assert_problem(twice, "GATEWAY_REDIS_PASSWORD: is given twice")

    def test_routes(self) -> None:
        """Routes by comma, blank or line, inline or in a file with comments; wrong ones are said by their type."""
        wanted = (
            RouteSpec("orders.place", subject="orders.place", deadline_s=0.5),
            RouteSpec("quotes.", url="https://quotes/commands"),
        )
        text = "orders.place=nats:orders.place;deadline=500ms{}quotes.=https://quotes/commands"
        for between in (",", " , ", "\n", "\n\n  "):
            environ = {"GATEWAY_COMMAND_ROUTES": text.format(between)}
            self.assertEqual(self.edge(environ).gateway_command_routes, wanted)
        file = b"# orders\n" + text.format("  # in time\n").encode()
        found = self.settings({**EDGE, "GATEWAY_COMMAND_ROUTES_FILE": "/r"}, None, {"/r": file}).edge
        assert found is not None
        self.assertEqual(found.gateway_command_routes, wanted)
        listed = self.settings(EDGE, 'gateway_command_routes = ["a=nats:b", "c.=nats:d"]').edge
        assert listed is not None
        self.assertEqual([route.message_type for route in listed.gateway_command_routes], ["a", "c."])
        (problem,) = self.problems({**EDGE, "GATEWAY_COMMAND_ROUTES": f"a=http://u:{PASSWORD}@h/"})
        self.assertIn("a goes neither to", problem)
        self.assertNotIn(PASSWORD[:8], problem)

    def test_base_url(self) -> None:
        """An http or https URL; a slash at its end is not part of it."""
        for text, value in (("http://auth:8081/", "http://auth:8081"), ("https://a/v1//", "https://a/v1")):
            self.assertEqual(self.edge({"GATEWAY_AUTH_SERVICE_BASE_URL": text}).gateway_auth_service_base_url, value)
        for text in ("auth:8081", "ftp://auth", "http://u:p@auth", "http://auth?x=1", "http://auth#x", "http:///x"):
            found = self.problems({**EDGE, "GATEWAY_AUTH_SERVICE_BASE_URL": text})
            self.assert_problem(found, "GATEWAY_AUTH_SERVICE_BASE_URL", "without credentials")

    def test_origins(self) -> None:
        """Origins are compared as browsers write them: lower case, without the usual port, each once."""
        text = "https://App.example.com:443, http://localhost:5173,https://app.example.com"
        found = self.edge({"GATEWAY_PUSH_ALLOWED_ORIGINS": text}).gateway_push_allowed_origins
        self.assertEqual(found, ("https://app.example.com", "http://localhost:5173"))
        for text in ("*", "app.example.com", "https://a/", "null", "wss://a"):
            self.assert_problem(self.problems({**EDGE, "GATEWAY_PUSH_ALLOWED_ORIGINS": text}), "a list of origins")

    def test_grants(self) -> None:
        """Grants stand in lines, whose breaks a file keeps; the text is handed on, a wrong line is named."""
        text = "# desk\nann: *\nbob: test/EURUSD, custom"
        self.assertEqual(self.edge({"GATEWAY_SIGNALS_GRANTS": text}).gateway_signals_grants, text)
        loaded = load_from({**EDGE, "GATEWAY_SIGNALS_GRANTS_FILE": "/g"}, None, {"/g": f"{text}\n".encode()})
        assert loaded.settings is not None
        assert loaded.settings.edge is not None
        self.assertEqual(loaded.settings.edge.gateway_signals_grants, text)
        self.assertIn(
            "GATEWAY_SIGNALS_GRANTS=ann: *; bob: test/EURUSD, custom  # GATEWAY_SIGNALS_GRANTS_FILE",
            describe(loaded).splitlines(),
        )
        self.assert_problem(
            self.problems({**EDGE, "GATEWAY_SIGNALS_GRANTS": "ann: *\nbob"}), "entry 2 is not of the form"
        )

    def test_a_key_is_not_a_path(self) -> None:
        """A private key that stands where its path belongs is not repeated."""
        name, key = "GATEWAY_RESPONSE_SIGNER_PRIVATE_KEY_PEM_PATH", f"-----BEGIN PRIVATE KEY-----\n{PASSWORD}"
        (found,) = self.problems({**EDGE, name: key})
        self.assertIn(f"{name}: a path", found)
        self.assertNotIn(PASSWORD[:8], found)

    def test_nothing_shows_the_password(self) -> None:
        """No problem, dump or repr of these settings holds any of it."""
        for more in ({}, {"GATEWAY_REDIS_DB": "x"}, {"GATEWAY_COMMAND_ROUTES": "x"}):
            loaded = load_from({**EDGE, **more})
            self.assertNotIn(PASSWORD[:9], f"{loaded!r} {describe(loaded)}")

    def test_the_dump_can_be_loaded(self) -> None:
        """What the dump says, secrets apart, is what would be loaded from it again."""
        environ = {
            **EDGE,
            "GATEWAY_COMMAND_ROUTES": "a=nats:b;deadline=250ms,c.=http://d/?x=1",
            "GATEWAY_PUSH_QUEUE_BYTES": "64KiB",
            "GATEWAY_AUTHENTICATED_GRPC_ADDR": ":9091,[::1]:9092",
            "GATEWAY_ADMIN_HTTP_ADDR": ":9100",
            "GATEWAY_PUSH_ALLOWED_ORIGINS": "https://a",
            "GATEWAY_SIGNALS_GRANTS": "u: *; v: a/b, c",
            "GATEWAY_REDIS_REPLICA_ADDRS": "r:1",
        }
        dump = [line.rsplit("  # ", 1)[0].split("=", 1) for line in describe(load_from(environ)).splitlines()]
        again = {name: text for name, text in dump if not name.startswith("sources.")}
        secrets = {"GATEWAY_REDIS_PASSWORD": PASSWORD, "API_KEY_HMAC_SECRET": ""}
        self.assertEqual(
            self.settings({**HOME, **again, **secrets, "PORT": ""} | {"API_KEY_HMAC_SECRET": "x" * 40}).edge,
            self.settings(environ).edge,
        )


class ListenersTest(SettingsCase):
    """What the edge means for the public listener, and the admin's addresses."""

    def test_two_public_ports(self) -> None:
        """With the edge on and nothing said, :8001 and :8080; who says PORT or addresses gets those."""
        for environ, ports in (
            (EDGE, [8001, 8080]),
            ({**EDGE, "PORT": "8001"}, [8001]),
            ({**EDGE, "PORT": "9000"}, [9000]),
            ({**EDGE, "GATEWAY_PUBLIC_HTTP_ADDR": ":7000"}, [7000]),
            (HOME, [8001]),
        ):
            found = self.settings(environ).gateway_public_http_addr
            self.assertEqual([address.port for address in found], ports)

    def test_hosts(self) -> None:
        """gRPC's :port is at HOST as the public one is, the admin's always at loopback."""
        environ = {**PRODUCTION, **FIVE, "GATEWAY_ADMIN_HTTP_ADDR": ":9100,10.0.0.1:9101,unix:/run/admin.sock"}
        found = self.settings(environ)
        assert found.edge is not None
        self.assertEqual(found.edge.gateway_authenticated_grpc_addr, (Address(Kind.TCP, "", 9090),))
        self.assertEqual(
            found.gateway_admin_http_addr,
            (
                Address(Kind.TCP, "127.0.0.1", 9100),
                Address(Kind.TCP, "10.0.0.1", 9101),
                Address(Kind.UNIX, path="/run/admin.sock"),
            ),
        )

    def test_the_admin_needs_no_edge(self) -> None:
        """The admin listener is off unless it is set, and is nothing of the edge's."""
        self.assertEqual(self.settings(HOME).gateway_admin_http_addr, ())
        self.assertEqual(len(self.settings({**HOME, "GATEWAY_ADMIN_HTTP_ADDR": ":0"}).gateway_admin_http_addr), 1)
        found = self.problems({**HOME, "GATEWAY_ADMIN_HTTP_ADDR": "systemd:domain=INET:name=admin"})
        self.assert_problem(found, "GATEWAY_ADMIN_HTTP_ADDR", "is for GATEWAY_PUBLIC_HTTP_ADDR")


class ReloadTest(SettingsCase):
    """What SIGHUP would find changed."""

    def test_differences_are_seen(self) -> None:
        """A changed value of the edge's is named, and so is the edge that comes or goes."""
        old = self.settings(EDGE)
        found = changes(old, self.settings({**EDGE, "GATEWAY_REDIS_DB": "1", "GATEWAY_REDIS_PASSWORD": "other"}))
        self.assertEqual(found.needs_restart, ("GATEWAY_REDIS_PASSWORD", "GATEWAY_REDIS_DB"))
        self.assertEqual(changes(old, old).needs_restart, ())
        gone: Settings = replace(old, edge=None)
        for found in (changes(old, gone), changes(gone, old)):
            self.assertEqual(found.reloadable, ())
            self.assertIn("GATEWAY_REDIS_MASTER_ADDR", found.needs_restart)
            self.assertIn("GATEWAY_SESSION_RPS", found.needs_restart)

    def test_limits(self) -> None:
        """Limits and lists are taken over; a burst is twice the rate, and at least one."""
        more = {"GATEWAY_SESSION_RPS": "0.1", "GATEWAY_PUSH_ALLOWED_ORIGINS": "https://a"}
        found = self.settings({**EDGE, **more})
        self.assertEqual(changes(self.settings(EDGE), found).reloadable, tuple(more))
        assert found.edge is not None
        self.assertEqual(
            found.edge.limits,
            {"session": Limit(0.1, 1.0), "user": Limit(50.0, 100.0), "message_type": Limit(1000, 2000)},
        )
