"""What a process sets itself."""

from __future__ import annotations

import resource
import subprocess
import sys

from netns.libc import OPEN_FILES

SCRIPT = """
import resource
from netns import libc
resource.setrlimit(resource.RLIMIT_NOFILE, (128, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
libc.allow_open_files()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_a_process_may_have_more_files_open_than_a_session_lets_it() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    told = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    assert told.split() == [str(min(most, OPEN_FILES)), str(most)]
