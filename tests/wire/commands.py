"""gatewayctl's command lines in this process, in a thread of their own: the tests' event loop is running."""

import io
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from typing import Any

from gatewayd import cli
from gatewayd.cli.console import Surroundings


def run(environ: Mapping[str, str], *arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    surroundings = replace(Surroundings.of_this_process(), environ=environ, stdin=lambda: io.BytesIO(stdin))
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), ThreadPoolExecutor(1) as thread:
        code = thread.submit(cli.run, arguments, surroundings).result(60)
    return int(code), out.getvalue(), err.getvalue()


def run_json(environ: Mapping[str, str], *arguments: str, stdin: bytes = b"") -> tuple[int, Any]:
    """Exit code and the JSON on stdout."""
    code, out, err = run(environ, *arguments, "--json", stdin=stdin)
    assert out.count("\n") == 1, out + err
    return code, json.loads(out)
