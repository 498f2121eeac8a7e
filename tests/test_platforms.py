"""Nothing in the package needs a module, function or constant that only Unix has."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import torchdoctor

PACKAGE = Path(torchdoctor.__file__).parent
UNIX_MODULES = {
    "fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog", "crypt", "spwd", "nis",
    "ossaudiodev", "readline", "curses",
}  # fmt: skip
# What the documentation of Python 3.11 marks as "Availability: Unix" and similar, by module.
UNIX_ATTRIBUTES = {
    "os": {
        "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC", "O_DSYNC", "O_CLOEXEC", "O_NOCTTY", "O_TMPFILE",
        "WEXITSTATUS", "WIFEXITED", "WIFSIGNALED", "WNOHANG", "WTERMSIG", "chown", "chroot", "confstr",
        "ctermid", "environb", "fchdir", "fchmod", "fchown", "fdatasync", "fork", "forkpty", "fpathconf",
        "fstatvfs", "getegid", "geteuid", "getgid", "getgroups", "getloadavg", "getpgid", "getpgrp",
        "getpriority", "getresuid", "getsid", "getuid", "initgroups", "killpg", "lchown", "lockf", "major",
        "minor", "mkfifo", "mknod", "nice", "openpty", "pathconf", "pipe2", "posix_fadvise",
        "posix_fallocate", "posix_spawn", "pread", "preadv", "pwrite", "pwritev", "readv",
        "register_at_fork", "sched_getaffinity", "sched_setaffinity", "sched_yield", "sendfile", "setegid",
        "seteuid", "setgid", "setpgid", "setpriority", "setregid", "setreuid", "setsid", "setuid", "statvfs",
        "sync", "sysconf", "tcgetpgrp", "tcsetpgrp", "ttyname", "uname", "wait", "wait3", "wait4", "waitid",
        "writev",
    },
    "signal": {
        "SIGALRM", "SIGBUS", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP",
        "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGUSR1", "SIGUSR2", "SIGWINCH", "alarm", "getitimer", "pause",
        "pidfd_send_signal", "pthread_kill", "pthread_sigmask", "setitimer", "siginterrupt", "sigpending",
        "sigtimedwait", "sigwait", "sigwaitinfo",
    },
    "socket": {"AF_UNIX", "sethostname"},
    "time": {"clock_gettime", "clock_settime", "pthread_getcpuclockid", "tzset"},
    "select": {"epoll", "kqueue", "poll"},
    "shutil": {"chown"},
    "asyncio": {"add_signal_handler", "open_unix_connection", "start_unix_server"},
}  # fmt: skip


def is_guard(node: ast.AST) -> bool:
    """Return whether a statement asks for the system, or stands ready for a name that is missing."""
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        return any(word in ast.unparse(node.test) for word in ("sys.platform", "os.name", "hasattr("))
    if isinstance(node, ast.Try):
        caught = " ".join(ast.unparse(handler.type) for handler in node.handlers if handler.type)
        return any(name in caught for name in ("ImportError", "ModuleNotFoundError", "AttributeError"))
    return False


def unix_only(source: str) -> list[str]:
    """Return the unguarded uses of what only Unix has, as `line: name`.

    A function that returns early unless `os.name` or `sys.platform` is right is guarded from there on.
    """
    uses: list[str] = []

    def visit(node: ast.AST, guarded: bool) -> None:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] in UNIX_MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            home = node.module.split(".")[0]
            names = [home] if home in UNIX_MODULES else [
                f"{home}.{alias.name}" for alias in node.names if alias.name in UNIX_ATTRIBUTES.get(home, ())
            ]  # fmt: skip
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.attr in UNIX_ATTRIBUTES.get(node.value.id, ())
        ):
            names = [f"{node.value.id}.{node.attr}"]
        if not guarded:
            uses.extend(f"{node.lineno}: {name}" for name in names)
        for _, value in ast.iter_fields(node):
            inner = guarded or is_guard(node)
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child, inner)
                    if (
                        isinstance(child, ast.If)
                        and is_guard(child)
                        and isinstance(child.body[-1], ast.Return)
                    ):
                        inner = True

    visit(ast.parse(source), False)
    return uses


def folder_syncs(source: str) -> list[str]:
    """Return the functions that wait for a folder to be on the disk without asking for the system."""
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and "os.fsync(" in (text := ast.unparse(node))
        and "os.O_RDONLY" in text and "os.name" not in text and "sys.platform" not in text
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "uses"),
    [
        ("import fcntl", ["1: fcntl"]),
        ("from resource import getrusage", ["1: resource"]),
        ("from os import fork, path", ["1: os.fork"]),
        ("import os\nos.register_at_fork()", ["2: os.register_at_fork"]),
        ("import signal\nsignal.SIGKILL", ["2: signal.SIGKILL"]),
        ("import os\nif os.name == 'posix':\n    os.fork()", []),
        ("import os\nif os.name == 'posix':\n    pass\nos.fork()", ["4: os.fork"]),
        ("import os\ntry:\n    os.sysconf('x')\nexcept (OSError, AttributeError):\n    pass", []),
        ("import os\ntry:\n    os.sysconf('x')\nexcept OSError:\n    pass", ["3: os.sysconf"]),
        ("def f():\n    if sys.platform == 'win32':\n        return\n    os.fork()", []),
        ("import signal\ngetattr(signal, 'SIGKILL', signal.SIGTERM)", []),
    ],
)
def test_the_search_tells_guarded_uses_from_others(source, uses):
    assert unix_only(source) == uses


def test_folder_syncs_are_seen():
    source = "def f(p):\n    h = os.open(p, os.O_RDONLY)\n    os.fsync(h)"
    assert folder_syncs(source) == ["f"]
    assert folder_syncs(source.replace("(p):", "(p):\n    if os.name != 'posix':\n        return")) == []


def test_the_package_uses_nothing_that_only_unix_has():
    sources = {file: file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py")}
    uses = {str(file.relative_to(PACKAGE)): unix_only(text) for file, text in sources.items()}
    assert {name: lines for name, lines in uses.items() if lines} == {}
    assert [str(file) for file, text in sources.items() if folder_syncs(text)] == []


IMPORT_ALL = """
import importlib, pkgutil, sys
import matplotlib.figure, pyarrow.parquet, scipy.stats, timm, torchvision, typer  # their own affairs
blocked = ("fcntl", "resource", "pwd", "grp", "termios")
for name in blocked:
    sys.modules[name] = None
for name in [name for name in sys.modules if name.split(".")[0] == "filelock"]:
    del sys.modules[name]  # the lock is chosen anew
for name in blocked:
    try:
        importlib.import_module(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} can be imported")
import torchdoctor
modules = [module.name for module in pkgutil.walk_packages(torchdoctor.__path__, "torchdoctor.")]
for name in modules:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(len(modules))
"""


@pytest.mark.slow
def test_every_module_is_imported_without_the_modules_of_unix():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", IMPORT_ALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 100
