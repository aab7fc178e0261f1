"""The environment file as text."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.cli.environment_file import Unwritable, assignments, merged, quote, values, with_value, without

FILE = """\
# Head
; another comment with A=1
A=1
  B = two words\t
C="x \\"y\\" \\$z \\q"
D='single "$q" \\'
E=one'two'
F="a"'b'c d

G=
no assignment
H=line\\
 one
I="first
second"
A=2"""


class TestReading(SynchronousTestCase):
    def test_as_systemd_reads_it(self) -> None:
        """Quotes, escapes, continued lines, blanks; the last assignment of a name counts. Tried with systemd 252."""
        self.assertEqual(
            values(FILE),
            {
                "A": "2",
                "B": "two words",
                "C": 'x "y" $z \\q',
                "D": 'single "$q" \\',
                "E": "one'two'",
                "F": "abc d",
                "G": "",
                "H": "line one",
                "I": "first\nsecond",
            },
        )

    def test_places(self) -> None:
        """What stands between the places of an assignment is what was written."""
        found = {(each.name, FILE[each.start : each.end]) for each in assignments(FILE)}
        self.assertIn(("G", "G="), found)
        self.assertIn(("I", 'I="first\nsecond"'), found)

    def test_broken_files(self) -> None:
        """An open quote ends with the file, as does a backslash."""
        self.assertEqual(values('A="x'), {"A": "x"})
        self.assertEqual(values("A='x"), {"A": "x"})
        self.assertEqual(values("A=x\\"), {"A": "x"})
        self.assertEqual(values('A="x\\'), {"A": "x"})
        self.assertEqual(values("A=1\r\nB=2\r\n"), {"A": "1", "B": "2"})


class TestWriting(SynchronousTestCase):
    def test_in_its_place(self) -> None:
        """Where it was set last; the rest is what it was, byte for byte, but for earlier assignments of the name."""
        self.assertEqual(with_value(FILE, "A", "3"), FILE.replace("A=1\n  B", "  B").replace("A=2", "A=3"))
        self.assertEqual(with_value(FILE, "I", "x"), FILE.replace('I="first\nsecond"', "I=x"))

    def test_under_the_line_that_shows_it(self) -> None:
        """A setting that stands there as a comment is set below it; any other at the end."""
        text = "# Rate.\n#RATE=100\n\n#OTHER=1\n"
        self.assertEqual(with_value(text, "RATE", "7"), "# Rate.\n#RATE=100\nRATE=7\n\n#OTHER=1\n")
        self.assertEqual(with_value(text, "NEW", "7"), text + "NEW=7\n")
        self.assertEqual(with_value("X=1", "NEW", "7"), "X=1\nNEW=7\n")
        self.assertEqual(with_value("", "NEW", "7"), "NEW=7\n")

    def test_unset(self) -> None:
        """Every assignment goes with its line; comments stay, also those that show the name."""
        self.assertEqual(without("#A=0\nA=1\nB=2\n A=3\n", "A"), "#A=0\nB=2\n")
        self.assertEqual(without("A=1\r\nB=2\r\n", "A"), "B=2\r\n")
        self.assertEqual(without(FILE, "NONE"), FILE)
        self.assertEqual(without("A=1", "A"), "")

    def test_quoting(self) -> None:
        """Plain where it may be, so that a shell reads it as systemd does."""
        self.assertEqual(quote("nats://h:4222,a@b%20"), "nats://h:4222,a@b%20")
        self.assertEqual(quote("a b"), '"a b"')
        self.assertEqual(quote('"$`\\'), '"\\"\\$\\`\\\\"')
        self.assertEqual(quote(""), '""')
        for text in ("a\nb", "a\0", "\x7f", "\ud800"):
            self.assertRaises(Unwritable, quote, text)

    @given(
        st.dictionaries(
            st.text(st.sampled_from("ABX_"), min_size=1, max_size=3),
            st.text(st.characters(exclude_categories=("Cs", "Cc"))),
            max_size=5,
        ),
        st.text(st.sampled_from("AB=#;'\"\\ \t\r\n$x")),
    )
    def test_what_is_set_is_read(self, wanted: dict[str, str], before: str) -> None:
        """Into any file at all: what was set is read back, and what was there and is not set anew stays."""
        text, stays = before, values(before)
        for name, value in wanted.items():
            try:
                text = with_value(text, name, value)
            except Unwritable:
                self.assertRegex(before, "['\"\\\\]")
                return
        self.assertEqual(values(text), {**stays, **wanted})

    def test_an_open_quote(self) -> None:
        """What would be swallowed by a quote that nobody closed is not written."""
        self.assertRaises(Unwritable, with_value, "A='1\n", "B", "2")
        self.assertEqual(with_value("A='1\n", "A", "2"), "A=2")


class TestMerging(SynchronousTestCase):
    def test_ones_own_comes_first(self) -> None:
        """Whoever sets a secret means none of the unit's forms of it: two forms would be an error."""
        unit = {"PORT": "1", "S_FILE": "/s", "T": "t", "U": "u"}
        self.assertEqual(
            merged({"S": "mine", "T_FILE": "/t", "HOME": "/"}, unit),
            {"PORT": "1", "U": "u", "S": "mine", "T_FILE": "/t", "HOME": "/"},
        )
