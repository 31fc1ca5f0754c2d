"""Becomes another program that ends when the process that started it does. Run as a script, standard library only.

    python -I -S launch.py PARENT_PID UID SIGNAL PROGRAM [ARGUMENT …]

It leaves root for UID (0: stays who it is), asks the kernel for SIGNAL at its parent's death (Linux; elsewhere the next
start finds what was left), and executes PROGRAM. It is a process of its own because the kernel forgets the request when
the user changes, and because Python code between fork and exec is not safe in a process with threads.
"""

import ctypes  # Here, not where it is used: the user it changes to may be unable to read Python's own files.
import os
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Exits with 127 where the program cannot be executed."""
    parent, user, signal_number = (int(argument) for argument in sys.argv[1:4])
    command = sys.argv[4:]
    if user:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    os.umask(0o077)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent:
        sys.exit(0)  # It died in between, and no signal will come.
    try:
        os.execv(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(127)


if __name__ == "__main__":
    main()
