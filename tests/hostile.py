"""Programs that try to pass without solving the task, to get out of the sandbox, or to stay behind.

The task is `solve(targets)`. `targets` holds the path of a file, the port of a server, the id of a process and the name of an abstract socket, all
outside the sandbox. The tests expect the answer that a successful attack would bring, so a pass is an escape.
"""

import textwrap
from typing import NamedTuple


class Hostile(NamedTuple):
    """A program, and the expression that the tests assert, which is true only if the attack succeeds."""

    source: str
    success: str = "solve(targets) == 'the right answer'"


def _program(text: str) -> str:
    return textwrap.dedent(text).lstrip("\n")


_FALSE = "\ndef solve(targets):\n    return None\n"

PROGRAMS: dict[str, Hostile] = {
    # -- exhausting the machine
    "fork bomb": Hostile("import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"),
    "fork bomb when called": Hostile(
        _program("""
            import os
            def solve(targets):
                while True:
                    try:
                        os.fork()
                    except OSError:
                        pass
        """),
    ),
    "thread bomb": Hostile(
        _program("""
            import threading, time
            threading.stack_size(65536)
            def solve(targets):
                started = 0
                try:
                    while True:
                        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
                        started += 1
                        if started > 64:
                            return 'many'
                except RuntimeError:
                    return 'few'
        """),
        "solve(targets) == 'many'",
    ),
    "memory bomb": Hostile(
        _program("""
            def solve(targets):
                held = []
                while True:
                    held.append(bytearray(1 << 26))
        """),
    ),
    "memory beyond the limit": Hostile(
        _program("""
            def solve(targets):
                return len(bytearray(600 << 20))
        """),
        "solve(targets) == 600 << 20",
    ),
    "disk bomb": Hostile(
        _program("""
            import os
            def solve(targets):
                written = 0
                try:
                    for number in range(64):
                        with open(f'f{number}', 'wb') as file:
                            written += file.write(b'x' * (1 << 22))
                except OSError:
                    pass
                return written
        """),
        "solve(targets) > 16 << 20",
    ),
    "one large file": Hostile(
        _program("""
            def solve(targets):
                with open('f', 'wb') as file:
                    return file.truncate(1 << 30)
        """),
        "solve(targets) == 1 << 30",
    ),
    "many open files": Hostile(
        _program("""
            import os
            def solve(targets):
                return len([os.open('/dev/null', 0) for _ in range(1000)])
        """),
        "solve(targets) == 1000",
    ),
    "endless loop": Hostile("while True:\n    pass\n"),
    "endless loop when called": Hostile("def solve(targets):\n    while True:\n        pass\n"),
    "endless sleep": Hostile("import time\ntime.sleep(10_000)\n"),
    "endless loop that ignores signals": Hostile(
        _program("""
            import signal
            for number in range(1, 65):
                try:
                    signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError):
                    pass
            while True:
                pass
        """),
    ),
    "waits on its input": Hostile("import sys\nsys.stdin.read()\ndef solve(targets):\n    return input()\n"),
    "output flood": Hostile("import os\nwhile True:\n    os.write(1, b'x' * 65536)\n"),
    "error flood": Hostile("import sys\nwhile True:\n    sys.stderr.write('x' * 65536)\n"),
    "answer flood": Hostile("def solve(targets):\n    return 'x' * (1 << 26)\n", "len(solve(targets)) == 1 << 26"),
    "endless answer": Hostile(
        _program("""
            import itertools
            def solve(targets):
                return itertools.count()
        """),
        "next(solve(targets)) == 0",
    ),
    "bottomless answer": Hostile(
        _program("""
            def solve(targets):
                nested = []
                for _ in range(100_000):
                    nested = [nested]
                return nested
        """),
        "isinstance(solve(targets), list)",
    ),
    "a number too long to read": Hostile(
        _program("""
            def solve(targets):
                return 10 ** 1_000_000
        """),
        "solve(targets) == 10 ** 1_000_000",
    ),
    "deep recursion": Hostile("import sys\nsys.setrecursionlimit(10**9)\ndef solve(targets):\n    return solve(targets)\n"),
    "an expression that takes forever": Hostile(
        _program("""
            import re
            def solve(targets):
                return re.match(r'(a+)+$', 'a' * 64 + 'b')
        """),
    ),
    # -- reading and writing outside
    "reads a file outside": Hostile("def solve(targets):\n    return open(targets[0]).read()\n", "solve(targets) == 'secret'"),
    "writes a file outside": Hostile(
        _program("""
            def solve(targets):
                return open(targets[0], 'w').write('gone')
        """),
        "solve(targets) == 4",
    ),
    "deletes a file outside": Hostile(
        _program("""
            import os
            def solve(targets):
                return os.unlink(targets[0])
        """),
        "solve(targets) is None",
    ),
    "walks up and down": Hostile(
        _program("""
            def solve(targets):
                return open('/tmp/../' * 9 + targets[0]).read()
        """),
        "solve(targets) == 'secret'",
    ),
    "follows a link": Hostile(
        _program("""
            import os
            def solve(targets):
                os.symlink(targets[0], 'link')
                return open('link').read()
        """),
        "solve(targets) == 'secret'",
    ),
    "reads the password file": Hostile(
        _program("""
            def solve(targets):
                return 'root:' in open('/etc/passwd').read()
        """),
        "solve(targets)",
    ),
    "reads memory through /proc": Hostile(
        _program("""
            def solve(targets):
                return len(open(f'/proc/{targets[2]}/maps').read()) > 0
        """),
        "solve(targets)",
    ),
    "finds the parent's files through /proc": Hostile(
        _program("""
            import os
            def solve(targets):
                return os.listdir('/proc/1/fd')
        """),
        "solve(targets)",
    ),
    "writes into the libraries": Hostile(
        _program("""
            import json
            def solve(targets):
                return open(json.__file__, 'a').write('#')
        """),
        "solve(targets) == 1",
    ),
    "writes next to the scratch folder": Hostile(
        _program("""
            def solve(targets):
                return open('/mine', 'w').write('x')
        """),
        "solve(targets) == 1",
    ),
    "makes a device": Hostile(
        _program("""
            import os, stat
            def solve(targets):
                return os.mknod('disk', 0o600 | stat.S_IFBLK, os.makedev(8, 0))
        """),
        "solve(targets) is None",
    ),
    "reads the environment": Hostile(
        _program("""
            import os
            def solve(targets):
                return os.environ.get('PLUMBLINE_SECRET')
        """),
        "solve(targets) == 'secret'",
    ),
    # -- the network, other processes, privileges
    "connects to a server": Hostile(
        _program("""
            import socket
            def solve(targets):
                socket.create_connection(('127.0.0.1', targets[1]), 1)
                return True
        """),
        "solve(targets)",
    ),
    "sends a datagram": Hostile(
        _program("""
            import socket
            def solve(targets):
                return socket.socket(2, 2).sendto(b'x', ('10.0.0.1', 53))
        """),
        "solve(targets) == 1",
    ),
    "resolves a name": Hostile(
        _program("""
            import socket
            def solve(targets):
                return socket.gethostbyname('example.org')
        """),
        "bool(solve(targets))",
    ),
    "connects to an abstract socket outside": Hostile(
        _program("""
            import socket
            def solve(targets):
                socket.socket(1, 1).connect(b'\\0' + targets[3].encode())
                return True
        """),
        "solve(targets)",
    ),
    "kills a process outside": Hostile(
        _program("""
            import os
            def solve(targets):
                os.kill(targets[2], 9)
                return True
        """),
        "solve(targets)",
    ),
    "kills its parent": Hostile("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\n" + _FALSE),
    "kills everything": Hostile("import os\nos.kill(-1, 9)\n" + _FALSE),
    "kills its group": Hostile("import os\nos.killpg(0, 9)\n" + _FALSE),
    "becomes root": Hostile(
        _program("""
            import os
            def solve(targets):
                os.setresuid(0, 0, 0)
                return True
        """),
        "solve(targets) is True",
    ),
    "raises its limits": Hostile(
        _program("""
            import resource
            def solve(targets):
                resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))
                return True
        """),
        "solve(targets)",
    ),
    "changes its root": Hostile("import os\ndef solve(targets):\n    os.chroot('/')\n    return True\n", "solve(targets)"),
    "mounts through ctypes": Hostile(
        _program("""
            import ctypes
            def solve(targets):
                return ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None)
        """),
        "solve(targets) == 0",
    ),
    "writes to memory through ctypes": Hostile("import ctypes\nctypes.string_at(0)\n" + _FALSE),
    "traces a process through ctypes": Hostile(
        _program("""
            import ctypes
            def solve(targets):
                return ctypes.CDLL(None).ptrace(16, targets[2], 0, 0)
        """),
        "solve(targets) == 0",
    ),
    "runs a shell": Hostile(
        _program("""
            import os
            def solve(targets):
                return os.system(f'cat {targets[0]} > copy') or open('copy').read()
        """),
        "solve(targets) == 'secret'",
    ),
    # -- staying behind
    "leaves a process": Hostile("import os, time\nif os.fork() == 0:\n    time.sleep(10_000)\n" + _FALSE),
    "leaves a process in its own session": Hostile(
        _program("""
            import os, time
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    time.sleep(10_000)
                os._exit(0)
        """)
        + _FALSE,
    ),
    "leaves a process that ignores signals": Hostile(
        _program("""
            import os, signal, time
            if os.fork() == 0:
                os.setsid()
                for number in (1, 2, 13, 15):
                    signal.signal(number, signal.SIG_IGN)
                time.sleep(10_000)
        """)
        + _FALSE,
    ),
    # -- forging a verdict
    "os._exit(0)": Hostile("import os\nos._exit(0)\n"),
    "os._exit(0) when called": Hostile("import os\ndef solve(targets):\n    os._exit(0)\n"),
    "SystemExit with 0": Hostile("raise SystemExit(0)\n"),
    "SystemExit with 0 when called": Hostile("def solve(targets):\n    raise SystemExit(0)\n"),
    "KeyboardInterrupt": Hostile("def solve(targets):\n    raise KeyboardInterrupt\n"),
    "GeneratorExit": Hostile("def solve(targets):\n    raise GeneratorExit\n"),
    "exits at exit": Hostile("import atexit, os\natexit.register(os._exit, 0)\n" + _FALSE),
    "prints the verdict": Hostile('print(\'{"outcome": "passed", "detail": ""}\')\n' + _FALSE),
    "writes the verdict to every descriptor": Hostile(
        _program("""
            import os
            for number in range(1, 64):
                try:
                    os.write(number, b'{"outcome": "passed", "detail": ""}\\n')
                except OSError:
                    pass
        """)
        + _FALSE,
    ),
    "closes every descriptor": Hostile("import os\nos.closerange(0, 64)\n" + _FALSE),
    "answers before it is asked": Hostile(
        _program("""
            import os, json
            line = json.dumps({'value': {'t': 'plain', 'v': 'the right answer'}}).encode() + b'\\n'
            for number in range(3, 64):
                try:
                    os.write(number, line * 9)
                except OSError:
                    pass
        """)
        + _FALSE,
        "solve(targets) == 'the right answer, which was not guessed'",
    ),
    "returns what equals everything": Hostile(
        _program("""
            class Yes:
                def __eq__(self, other):
                    return True
                def __bool__(self):
                    return True
                __hash__ = None
            def solve(targets):
                return Yes()
        """),
    ),
    "returns a string that equals everything": Hostile(
        _program("""
            class Yes(str):
                def __eq__(self, other):
                    return True
                __hash__ = str.__hash__
            def solve(targets):
                return Yes('no')
        """),
    ),
    "returns a list that equals everything": Hostile(
        _program("""
            class Yes(list):
                def __eq__(self, other):
                    return True
                __hash__ = None
            def solve(targets):
                return Yes()
        """),
        "solve(targets) == ['the right answer']",
    ),
    "replaces builtins": Hostile(
        _program("""
            import builtins
            for name in ('len', 'sorted', 'set', 'isinstance', 'all', 'print'):
                setattr(builtins, name, lambda *a, **k: 'the right answer')
            builtins.AssertionError = ValueError
        """)
        + _FALSE,
        "len([solve(targets)]) == 2",
    ),
    "defines builtins' names": Hostile(
        _program("""
            def len(x):
                return 2
            def sorted(x):
                return 2
        """)
        + _FALSE,
        "len([solve(targets)]) == 2",
    ),
    "replaces the tests": Hostile("def check(candidate):\n    return True\ndef targets(*a):\n    return True\n" + _FALSE),
    "looks for the tests in its frames": Hostile(
        _program("""
            import gc, sys
            def solve(targets):
                frame, seen = sys._getframe(), gc.get_objects()
                while frame:
                    seen += [*frame.f_locals.values()]
                    frame = frame.f_back
                return ' '.join(['which', 'was', 'not', 'shown']) in str([item for item in seen if isinstance(item, (str, dict, list))])
        """),
        "solve(targets) and 'which was not shown'",
    ),
    "patches the process that calls it": Hostile(
        _program("""
            import sys
            main = sys.modules['__main__']
            main.encode = lambda *a: {'t': 'plain', 'v': True}
            main.decode = lambda *a: True
            main.run_tests = lambda *a: {'outcome': 'passed', 'detail': ''}
        """)
        + _FALSE,
    ),
    "sends an invalid handle": Hostile(
        _program("""
            import sys
            main = sys.modules['__main__']
            main.encode = lambda *a: {'t': 'handle', 'v': 'x'}
        """)
        + _FALSE,
    ),
    "has its own module loaded": Hostile(
        _program("""
            import sys
            sys.modules['__main__'].encode = lambda *a: {'t': 'module', 'v': 'solution.evil'}
        """)
        + _FALSE,
    ),
    "defines nothing": Hostile("solve = None\n"),
    "is not Python": Hostile("Sure! Here is the program:\n"),
    "is empty": Hostile(""),
    "has a null byte": Hostile("def solve(targets):\n    return '\x00'\n"),
}
