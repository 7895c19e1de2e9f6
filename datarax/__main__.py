"""Where the `datarax` command starts, and `python -m datarax`.

SIGINT gets its default action before anything else is imported: Python's own handler would raise KeyboardInterrupt, and in the
import of a C extension that aborts the process. From here until a session begins (`training/signals.py`) a signal ends the
process; whatever it was doing, the next start can go on from there.
"""

import signal

if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import sys

from datarax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
