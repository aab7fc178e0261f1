"""
Files that a command replaces in one step: who reads one sees the old content or the new, never a part.

Decides nothing about what is written. Never leaves a second file behind.
"""

import os
from contextlib import suppress
from pathlib import Path

from gatewayd.cli.console import Code, Failed


def replace_file(path: Path, content: bytes, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Have `path` hold the content, synced, with this mode, and of this user and group; Failed when it cannot."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            if owner is not None and owner != (os.geteuid(), os.getegid()):
                os.fchown(file.fileno(), *owner)
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise Failed(Code.WRONG, f"{path} cannot be written: {error.strerror}") from None
