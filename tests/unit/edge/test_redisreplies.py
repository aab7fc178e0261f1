"""What a server's errors mean, what it says of its memory, and the scripts' names."""

from hashlib import sha1
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.errors import Unavailable
from gatewayd.stores.redismemory import RedisMemory, read_info
from gatewayd.stores.redismetrics import RedisMetrics
from gatewayd.stores.redisreplies import KINDS, RedisRefused, ends_connection, judge
from gatewayd.stores.script import Script


class JudgeTests(SynchronousTestCase):
    def test_not_now(self) -> None:
        """What passes, or is the operator's, is Unavailable, under a word of its own."""
        for text in (
            "LOADING Valkey is loading the dataset in memory",
            "BUSY Valkey is busy running a script.",
            "READONLY You can't write against a read only replica. script: 1b, on @user_script:5.",
            "OOM command not allowed when used memory > 'maxmemory'.",
            "MISCONF Valkey is configured to save RDB snapshots",
            "MASTERDOWN Link with MASTER is down",
            "NOREPLICAS Not enough good replicas to write.",
            "CLUSTERDOWN The cluster is down",
            "NOAUTH Authentication required.",
            "WRONGPASS invalid username-password pair",
            "NOPERM User default has no permissions to run the 'evalsha' command",
        ):
            kind, error = judge(text)
            self.assertIsInstance(error, Unavailable)
            self.assertEqual(kind, text.partition(" ")[0].lower())
            self.assertIn(kind, KINDS)

    def test_ours(self) -> None:
        """What is a fault of ours, or foreign data, is refused, with its code."""
        for text in ("WRONGTYPE Operation against a key", "ERR unknown command", "UNBLOCKED the stream key", "", "X"):
            kind, error = judge(text)
            self.assertEqual(kind, "refused")
            assert isinstance(error, RedisRefused)
            self.assertEqual((error.code, error.text), (text.partition(" ")[0], text))

    def test_a_new_connection_helps(self) -> None:
        """After a change of password or role only a new connection can do better."""
        self.assertTrue(all(map(ends_connection, ("NOAUTH x", "READONLY x", "WRONGPASS x"))))
        self.assertFalse(any(map(ends_connection, ("OOM x", "LOADING x", "ERR READONLY", ""))))


class ScriptTests(SynchronousTestCase):
    def test_known_by_its_text(self) -> None:
        """A script is known by the SHA-1 of its text; one that is not there is an error at once."""
        script = Script.of("admission_admit")
        text = (Path(__file__).parents[3] / "gatewayd/stores/lua/admission_admit.lua").read_bytes()
        self.assertEqual((script.text, script.sha.decode()), (text, sha1(text).hexdigest()))
        self.assertRaises(FileNotFoundError, Script.of, "nothing")


class Server:
    """A link to a server that says this of itself."""

    name = "Redis"
    connected = True

    def __init__(self) -> None:
        self.reply: Any = b""

    def call(self, *arguments: bytes | str | int) -> Deferred[Any]:
        """See RedisLink.call."""
        return fail(self.reply) if isinstance(self.reply, Exception) else succeed(self.reply)


class MemoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = Server()
        self.evicted: list[int] = []
        self.memory = RedisMemory(self.server, self.evicted.append)

    def look(self, policy: str, evicted: int) -> None:
        self.server.reply = f"# Memory\r\nmaxmemory_policy:{policy}\r\n# Stats\r\nevicted_keys:{evicted}\r\n".encode()
        self.successResultOf(Deferred.fromCoroutine(self.memory.look()))

    def test_policies(self) -> None:
        """allkeys-* is warned of, with what to do; what drops no key of ours unasked is not."""
        for policy, warned in (("allkeys-lru", 1), ("noeviction", 0), ("volatile-ttl", 0), ("allkeys-random", 1)):
            self.look(policy, 0)
            self.assertEqual(len(self.memory.warnings()), warned, policy)
        self.assertIn("allkeys-random", self.memory.warnings()[0])
        self.assertIn("noeviction", self.memory.warnings()[0])

    def test_evictions(self) -> None:
        """Keys evicted since the first look are counted, through a restart of the server too."""
        for total in (5, 5, 8, 2):
            self.look("volatile-lru", total)
        self.assertEqual(self.evicted, [3, 2])

    def test_a_server_that_does_not_say(self) -> None:
        """A refusal, an outage and a strange answer leave everything as it was."""
        self.look("allkeys-lru", 1)
        for reply in (Unavailable("x"), RedisRefused("ERR", "ERR x")):
            self.server.reply = reply
            self.successResultOf(Deferred.fromCoroutine(self.memory.look()))
        self.assertEqual(len(self.memory.warnings()), 1)
        self.assertEqual(read_info(b"\xff\r\na:b:c\r\n"), {"a": "b:c"})
        self.assertEqual(self.evicted, [])


class MetricsTests(SynchronousTestCase):
    def test_connected_means_every_link(self) -> None:
        """redis_connected is 1 while every link answers; every kind of error is there at 0."""
        registry = CollectorRegistry()
        metrics = RedisMetrics(registry)
        for states, shown in (((True,), 1), ((True, False), 0), ((True, True), 1)):
            for number, up in enumerate(states):
                metrics.connected(f"link {number}", up)
            self.assertEqual(registry.get_sample_value("redis_connected"), shown)
        for kind in KINDS:
            self.assertEqual(registry.get_sample_value("redis_errors_total", {"kind": kind}), 0)
        metrics.error("timeout")
        metrics.evicted(3)
        self.assertEqual(registry.get_sample_value("redis_errors_total", {"kind": "timeout"}), 1)
        self.assertEqual(registry.get_sample_value("redis_evicted_keys_total"), 3)
