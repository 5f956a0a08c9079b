"""Programs in the lab: what they may do, what they inherit, how they are listened to."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.netns.lab import Lab, LabError, ProgramError

NOBODY = 65534
CAPABILITIES = re.compile(r"^Cap(?:Inh|Prm|Eff|Bnd|Amb):\s*(\w+)$", re.MULTILINE)


class TestPrograms:
    def test_run_without_any_capability(self, any_lab: Lab) -> None:
        status = any_lab.host("host").run(["cat", "/proc/self/status"]).stdout
        sets = CAPABILITIES.findall(status)
        assert len(sets) == 5
        assert {int(each, 16) for each in sets} == {0}
        assert "NoNewPrivs:\t1" in status

    def test_cannot_change_their_network_unless_privileged(self, any_lab: Lab) -> None:
        host = any_lab.host("host")
        argv = ["ip", "link", "set", "eth0", "mtu", "1400"]
        with pytest.raises(ProgramError, match="not permitted"):
            host.run(argv)
        host.run(argv, privileged=True)
        assert "mtu 1400" in host.run(["ip", "link", "show", "eth0"]).stdout

    def test_run_as_another_user_where_there_are_users(self, any_lab: Lab) -> None:
        host = any_lab.host("host")
        everybody = Path("/proc/self/uid_map").read_text().split()[2] == str(2**32 - 1)
        if any_lab.rootless or not everybody:
            with pytest.raises(LabError, match="leave uid out"):
                host.run(["id", "-u"], uid=NOBODY)
        else:
            assert host.run(["id", "-u"], uid=NOBODY).stdout.strip() == str(NOBODY)

    def test_find_the_checkout_and_not_the_settings_of_the_caller(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("GCB_BROKER", "192.0.2.1")
        code = "import os, tests.netns; print(os.getcwd(), sorted(os.environ))"
        shown = lab.host("host").run(
            [sys.executable, "-c", code], cwd=tmp_path, env={"DPF_SERVER": "10.0.0.1"}
        )
        assert str(tmp_path) in shown.stdout
        assert "'DPF_SERVER'" in shown.stdout and "GCB_BROKER" not in shown.stdout

    def test_privileged_ones_have_a_run_directory_of_the_labs_own(self, any_lab: Lab) -> None:
        gateway = any_lab.gateway("ga")
        name = f"/run/lab-{os.getpid()}"
        gateway.run(["touch", name], privileged=True)
        gateway.run(["test", "-e", name], privileged=True)
        assert not os.path.exists(name)

    def test_lines_are_waited_for_in_order(self, lab: Lab) -> None:
        program = lab.host("host").popen(["sh", "-c", "echo one; echo two >&2; cat; exit 3"])
        assert program.wait_line("^(o.e)$")[1] == "one"
        program.wait_line("two", stream="stderr")
        assert program.wait() == 3

    def test_input_and_output_pass_unharmed(self, lab: Lab) -> None:
        text = "x" * 1_000_000
        assert lab.host("host").run(["cat"], input=text).stdout == text

    def test_pipe_to_a_running_program(self, lab: Lab) -> None:
        program = lab.host("host").popen(["cat"], stdin=subprocess.PIPE)
        program.stdin.write(b"echo\n")
        program.stdin.flush()
        program.wait_line("^echo$")
        program.stdin.close()
        assert program.wait() == 0

    def test_a_line_that_never_comes_is_an_error_with_all_that_was_said(self, lab: Lab) -> None:
        host = lab.host("host")
        with pytest.raises(ProgramError, match=r"(?s)ended without.*the reason"):
            host.popen(["sh", "-c", "echo the reason >&2"]).wait_line("ready")
        with pytest.raises(ProgramError, match=r"(?s)hangs.*so far"):
            host.popen(["sh", "-c", "echo so far; exec sleep 1000"]).wait_line(
                "ready", hang_limit=0.5
            )

    def test_a_program_that_hangs_is_killed_at_its_limit(self, lab: Lab) -> None:
        with pytest.raises(ProgramError, match="hangs"):
            lab.host("host").run(["sleep", "1000"], hang_limit=0.2)

    def test_output_ends_with_the_program_even_if_a_child_holds_it(self, lab: Lab) -> None:
        done = lab.host("host").run(["sh", "-c", "sleep 1000 & echo done"])
        assert done.stdout == "done\n"

    def test_signals_reach_the_program_itself(self, any_lab: Lab) -> None:
        program = any_lab.host("host").popen(["sh", "-c", "echo ready; exec sleep 1000"])
        program.wait_line("ready")
        assert program.terminate() == -signal.SIGTERM

    def test_interrupt_works_though_the_caller_ignores_it(self, lab: Lab) -> None:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            program = lab.host("host").popen(["sh", "-c", "echo ready; exec sleep 1000"])
        finally:
            signal.signal(signal.SIGINT, before)
        program.wait_line("ready")
        program.signal(signal.SIGINT)
        assert program.wait() == -signal.SIGINT
