"""How labs live and end: side by side, as any user, after SIGKILL, and on the command line."""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.lab import Lab, LabError
from tests.netns.lab.program import HANG_LIMIT, REPOSITORY, environment
from tests.netns.talk import listen, outcome

NOBODY = 65534
# Builds a lab, leaves a daemon in it that nobody waits for, and says what must go.
HOLDER = textwrap.dedent("""
    import sys
    from tests.netns.lab import Lab
    lab = Lab(rootless=(sys.argv[1] == "user namespace") or None)
    host = lab.gateway("ga").host("a", delay_ms=1)
    leaver = host.popen(["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!"])
    daemon = leaver.wait_line("^[0-9]+$")[0]
    leaver.wait()
    stayer = host.popen(["sh", "-c", "echo here; exec sleep 1000"])
    stayer.wait_line("here")
    spaces = [lab.core.inode, *(node.space.inode for node in lab.nodes.values())]
    print("held", lab.warden.pid, daemon, stayer.pid, *spaces, flush=True)
    sys.stdin.read()
    lab.close()
    print("closed", flush=True)
""")


# Is killed while its programs are being started. The argument is a number nobody else sleeps for.
STARTER = textwrap.dedent("""
    import os, sys
    from tests.netns.lab import Lab
    lab = Lab(rootless=(sys.argv[1] == "user namespace") or None)
    host = lab.gateway("ga").host("a")
    print(lab.warden.pid, flush=True)
    sys.stdin.read()
    for _ in range(3):
        host.popen(["sleep", sys.argv[2]])
    os.kill(os.getpid(), 9)
""")


def ended(pidfd: int) -> bool:
    """Wait for a process to end; false at the hang limit."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    done = bool(poller.poll(HANG_LIMIT * 1000))
    os.close(pidfd)
    return done


def processes_in(spaces: set[int]) -> set[int]:
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.stat(entry / "ns/net").st_ino in spaces:
                found.add(int(entry.name))
        except OSError:
            continue  # gone meanwhile, or another user's
    return found


@pytest.mark.parametrize("how", ["own rights", "user namespace"])
class TestCleanup:
    @pytest.fixture
    def holder(
        self, how: str, no_user_namespace_because: str | None
    ) -> Iterator[subprocess.Popen[str]]:
        if how == "user namespace" and no_user_namespace_because:
            pytest.skip(no_user_namespace_because)
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        yield process
        process.kill()
        process.communicate(timeout=HANG_LIMIT)

    def held(self, holder: subprocess.Popen[str]) -> tuple[list[int], set[int]]:
        """The pidfds of warden, orphan and program, and the namespaces."""
        assert holder.stdout is not None
        word, *numbers = holder.stdout.readline().split()
        assert word == "held"
        pids, spaces = [int(n) for n in numbers[:3]], {int(n) for n in numbers[3:]}
        # By number: what they are called depends on how far their exec has come.
        assert processes_in(spaces) == set(pids[1:])
        return [os.pidfd_open(pid) for pid in pids], spaces

    def test_nothing_is_left_after_close(self, holder: subprocess.Popen[str]) -> None:
        pidfds, spaces = self.held(holder)
        output, _ = holder.communicate(timeout=HANG_LIMIT)
        assert (output, holder.returncode) == ("closed\n", 0)
        assert all(map(ended, pidfds))
        assert processes_in(spaces) == set()

    def test_nothing_is_left_after_sigkill(self, holder: subprocess.Popen[str]) -> None:
        pidfds, spaces = self.held(holder)
        holder.kill()
        assert all(map(ended, pidfds))
        assert processes_in(spaces) == set()


@pytest.mark.parametrize("attempt", range(4))
@pytest.mark.parametrize("how", ["own rights", "user namespace"])
def test_nothing_is_left_of_programs_that_were_just_being_started(
    how: str, attempt: int, no_user_namespace_because: str | None
) -> None:
    if how == "user namespace" and no_user_namespace_because:
        pytest.skip(no_user_namespace_because)
    number = f"{10_000_000 + os.getpid()}.{attempt}"
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, how, number],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
    )
    assert starter.stdin is not None and starter.stdout is not None
    warden = os.pidfd_open(int(starter.stdout.readline()))
    starter.communicate(timeout=HANG_LIMIT)
    assert starter.returncode == -signal.SIGKILL
    assert ended(warden)
    # One that found the door closed may still be on its way out.
    assert all(map(ended, sleepers(number)))


def sleepers(number: str) -> list[int]:
    """The pidfds of programs that sleep for this number, or are about to."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if words[-3:-1] == [b"sleep", number.encode()]:
                found.append(os.pidfd_open(int(entry.name)))
    return found


class TestLabs:
    def test_two_labs_at_once_do_not_meet(self) -> None:
        with Lab() as one, Lab() as two:
            for number, lab in enumerate((one, two)):
                public = lab.host("pub")
                inner = lab.gateway("ga").host("a")
                listen(public, 80 + number)
                assert outcome(inner, public.address, 80 + number) == "connected"
                assert outcome(inner, public.address, 81 - number) == "ECONNREFUSED"

    def test_closing_twice_is_once(self) -> None:
        lab = Lab()
        lab.host("host")
        lab.close()
        lab.close()

    def test_error_in_the_block_still_closes(self) -> None:
        with pytest.raises(ZeroDivisionError), Lab() as lab:
            warden = os.pidfd_open(lab.warden.pid)
            lab.host("host").popen(["sleep", "1000"])
            raise ZeroDivisionError
        assert ended(warden)

    def test_close_ends_who_is_about_to_enter(self, any_lab: Lab, tmp_path: Path) -> None:
        # It opens these in turn; each open() lasts until the other end is opened, too.
        now, never = tmp_path / "now", tmp_path / "never"
        os.mkfifo(now)
        os.mkfifo(never)
        entry = any_lab.host("host").space.entry()
        argv = [*entry[:-1], f"--ipc={now}", f"--uts={never}", "sleep", "1000"]
        with subprocess.Popen(argv) as visitor, now.open("wb"):
            # Now it has opened the namespace, and not entered.
            try:
                any_lab.close()
                assert visitor.wait(HANG_LIMIT) == -signal.SIGKILL
            finally:
                visitor.kill()

    def test_a_dead_warden_is_named(self) -> None:
        lab = Lab()
        os.kill(lab.warden.pid, signal.SIGKILL)
        with pytest.raises(LabError, match="warden does not answer"):
            lab.host("host")
        with pytest.raises(LabError, match="warden does not answer"):
            lab.close()

    def test_an_ordinary_user_can_have_one(self, no_user_namespace_because: str | None) -> None:
        if no_user_namespace_because:
            pytest.skip(no_user_namespace_because)
        code = textwrap.dedent("""
            import os
            from tests.netns.lab import Lab
            with Lab() as lab:
                a = lab.gateway("ga").host("a", delay_ms=1)
                assert lab.rootless
                pub = lab.host("pub")
                listener = pub.socket()
                listener.bind(("0.0.0.0", 80))
                listener.listen()
                a.run(["bash", "-c", f"exec 3<>/dev/tcp/{pub.address}/80"])
                assert listener.accept()[1][0] == a.observed_address
            print("had one as", os.getuid())
        """)
        prefix, user = ordinary_user()
        done = subprocess.run(
            [*prefix, "-c", code],
            env=environment(),
            cwd="/",
            capture_output=True,
            text=True,
            timeout=HANG_LIMIT,
            check=False,
        )
        assert (done.stdout.strip(), done.returncode) == (f"had one as {user}", 0), done.stderr


def ordinary_user() -> tuple[list[str], int]:
    """A command prefix that runs Python without privileges, and the user it does so as.

    Root becomes `nobody`, which needs an interpreter and the checkout within that user's reach.
    (Root without capabilities would not do: it may not map itself into a user namespace.)
    """
    if os.getuid() != 0:
        return [sys.executable], os.getuid()
    nobody = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    nobody += [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    check = (
        "import subprocess, sys, tests.netns.lab;"
        # setpriv may still reach an interpreter that the user itself cannot.
        "subprocess.run([sys.executable, '-c', ''], check=True)"
    )
    for python in filter(None, [sys.executable, shutil.which("python3", path="/usr/bin")]):
        argv = [*nobody, python, "-c", check]
        tried = subprocess.run(argv, env=environment(), cwd="/", capture_output=True, check=False)
        if tried.returncode == 0:
            return [*nobody, python], NOBODY
    pytest.skip("no ordinary user here who can reach a Python 3.11 and the checkout")


# Runs the rest of its arguments where no network namespace can be made.
WITHOUT_NAMESPACES = (
    "echo 0 > /proc/sys/user/max_net_namespaces && echo 0 > /proc/sys/user/max_user_namespaces"
    ' && exec "$@"'
)


class TestWhereThereAreNoNamespaces:
    @pytest.mark.parametrize(
        ("ci", "said", "status"),
        [("", "NAT tests skipped: no network namespaces", 0), ("true", "CI must run", 1)],
    )
    def test_tests_are_skipped_aloud_and_fail_in_ci(
        self, no_user_namespace_because: str | None, ci: str, said: str, status: int
    ) -> None:
        if no_user_namespace_because:
            pytest.skip(no_user_namespace_because)
        inner = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist"]
        inner += [f"{__file__}::TestLabs::test_closing_twice_is_once"]
        done = subprocess.run(
            ["unshare", "-Ur", "sh", "-c", WITHOUT_NAMESPACES, "sh", *inner],
            env=environment({"CI": ci}),
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=HANG_LIMIT,
            check=False,
        )
        assert said in done.stdout + done.stderr
        assert done.returncode == status


class TestCommand:
    def run_lab(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tests.netns.lab", *arguments],
            cwd=REPOSITORY,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=HANG_LIMIT,
            check=False,
        )

    def test_runs_a_command_inside_a_host_and_returns_its_status(self) -> None:
        done = self.run_lab("--in", "b2", "--", "sh", "-c", "ip -o -4 address show eth0; exit 5")
        assert "10.2.0.3/24" in done.stdout
        assert done.returncode == 5

    def test_names_the_hosts_if_there_is_none_of_that_name(self) -> None:
        done = self.run_lab("--in", "x", "--", "true")
        assert done.returncode == 1
        assert "no host named 'x'; there are pub, pub2, ga, a, gb, b1, b2" in done.stderr

    def test_command_and_host_go_together(self) -> None:
        assert self.run_lab("--in", "a").returncode == 2

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    @pytest.mark.parametrize("topology", ["two-nats", "nested-nats"])
    def test_shows_the_hosts_and_how_to_enter_them_until_interrupted(
        self, topology: str, number: signal.Signals
    ) -> None:
        argv = [sys.executable, "-m", "tests.netns.lab", "--topology", topology]
        process = subprocess.Popen(
            argv, cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or not lines[-1].startswith("lab ready"):
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        commands = [line.strip() for line in lines if "nsenter" in line]
        assert len(commands) == (7 if topology == "two-nats" else 6)
        entered = subprocess.run(
            ["sh", "-c", f"{commands[0]} -c 'ip -o address show eth0'"],
            capture_output=True,
            text=True,
            check=True,
            env=environment(),
        )
        assert "198.51.100.1/24" in entered.stdout
        process.send_signal(number)
        assert process.wait(HANG_LIMIT) == 0
        process.stdout.close()
