"""Types lines into an interactive shell on a terminal: SHELL-COMMAND... -- LINE... (with \\t for the tab key). Prints what it shows."""

import os
import pty
import sys

at = sys.argv.index("--")
shell, lines = sys.argv[1:at], sys.argv[at + 1 :]
pid, terminal = pty.fork()
if pid == 0:
    os.environ["TERM"] = "dumb"
    os.execvp(shell[0], shell)


def read_until(text):
    shown = b""
    while text not in shown:
        try:
            part = os.read(terminal, 65536)
        except OSError:
            part = b""
        if not part:
            sys.exit("the shell has ended: " + shown.decode(errors="replace"))
        shown += part
    return shown.decode(errors="replace")


for line in lines:
    os.write(terminal, line.replace("\\t", "\t").encode() + b"\n")
    print(read_until(b"<done>"), flush=True)
os.close(terminal)
