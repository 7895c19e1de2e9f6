"""Where the `datarax` command starts, and `python -m datarax`.

What Python puts first on the import path by itself, the working directory (`-m`) or this one (started by its path), is taken
off before anything else is imported: a `signal.py` that lies in a run directory must not run. What a user puts there
(PYTHONPATH) stays.

SIGINT gets its default action before anything large is imported: Python's own handler would raise KeyboardInterrupt, and in the
import of a C extension that aborts the process. From here until a session begins (`multihost/signals.py`) a signal ends the
process; whatever it was doing, the next start can go on from there.
"""

import os
import sys

if __name__ == "__main__":
    _here = os.path.dirname(os.path.abspath(__file__))
    try:
        _working_directory = os.getcwd()
    except OSError:  # it was deleted
        _working_directory = ""
    # With safe_path (`python -P`, PYTHONSAFEPATH) Python has put nothing there.
    if not sys.flags.safe_path and sys.path[0] in ("", _here, _working_directory):
        del sys.path[0]
    if not __package__:
        # Started by its path, as our own child processes are: then this very datarax, wherever else another one may lie.
        sys.path.insert(0, os.path.dirname(_here))
        import datarax

        del sys.path[0], datarax

import signal

if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from datarax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
