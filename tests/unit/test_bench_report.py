"""The figures' tables and drawing: what stands in them is what was measured."""

import xml.etree.ElementTree as ElementTree

from twisted.trial.unittest import SynchronousTestCase

from tests.bench import plot, report

SVG = "{http://www.w3.org/2000/svg}"


def row(number: int, name: str, cpu_us: float) -> report.Row:
    """One run with the same value in every other column."""
    columns = {column: 1.0 for column, _ in report.COLUMNS.values()}
    return {"round": number, "shape": "64", "name": name, **columns, "cpu_us": cpu_us}


class MainTable(SynchronousTestCase):
    def test_the_ratio_is_taken_within_a_round(self) -> None:
        """A machine that is slow for one round does not move the ratio: its median is of each round's own."""
        rows = [row(0, "a", 10), row(0, "b", 20), row(1, "a", 40), row(1, "b", 80), row(2, "a", 11), row(2, "b", 22)]
        lines = report.main_table(rows, ["64"], ["a", "b"]).splitlines()
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
        self.assertEqual([cells[0][1], cells[0][3], cells[0][-1]], ["a", "11", "1.00"])
        self.assertEqual([cells[1][1], cells[1][3], cells[1][-1]], ["b", "22", "2.00"])

    def test_every_line_has_as_many_cells_as_the_title(self) -> None:
        """Markdown drops what has no column."""
        lines = report.main_table([row(0, "a", 1)], ["64"], ["a"]).splitlines()
        self.assertEqual({line.count("|") for line in lines}, {lines[0].count("|")})


class Grid(SynchronousTestCase):
    def test_a_cell_is_its_rows(self) -> None:
        """Each server's column holds its own row of that value."""
        rows = [
            {"name": name, "size": size, "v": size * factor}
            for size in (1, 2)
            for name, factor in (("a", 1), ("b", 10))
        ]
        text = report.grid(rows, "size", "bytes", lambda found: str(found["v"]))
        self.assertEqual(text.splitlines()[2:], ["| 1 | 1 | 10 |", "| 2 | 2 | 20 |"])


class Drawing(SynchronousTestCase):
    def test_points_stand_on_logarithmic_axes(self) -> None:
        """Equal factors are equal distances, a larger value stands higher, and names are escaped."""
        points = [(1.0, 1.0), (10.0, 10.0), (100.0, 100.0)]
        root = ElementTree.fromstring(plot.draw([plot.Panel("t", "x", "y", {"a & <b>": points})]))
        circles = [(float(found.attrib["cx"]), float(found.attrib["cy"])) for found in root.iter(f"{SVG}circle")]
        self.assertEqual(len(circles), 3)
        self.assertAlmostEqual(circles[1][0] - circles[0][0], circles[2][0] - circles[1][0], delta=0.2)
        self.assertGreater(circles[0][1], circles[2][1])
        self.assertIn("a & <b>", [found.text for found in root.iter(f"{SVG}text")])

    def test_ticks_are_few(self) -> None:
        """A wide axis is marked at powers of ten only."""
        self.assertEqual(plot.ticks(1, 100), [1, 2, 5, 10, 20, 50, 100])
        self.assertEqual(plot.ticks(0.01, 10_000), [0.01, 0.1, 1, 10, 100, 1000, 10_000])


class PushPart(SynchronousTestCase):
    def test_each_bench_keeps_the_other_part(self) -> None:
        """The part on push is replaced alone, and taken over by who writes the rest."""
        once = report.with_push("# Benchmarks\n", "one\n")
        twice = report.with_push(once, "two\n")
        self.assertEqual(twice, once.replace("one", "two"))
        self.assertEqual("# Benchmarks\n" + report.push_of(twice), twice)
        self.assertEqual(report.push_of("# Benchmarks\n"), "")
