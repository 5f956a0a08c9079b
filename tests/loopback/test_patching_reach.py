"""python -m gcbpatch reaches Python subprocesses, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from .mend_ground import HANG_LIMIT, PATCHED, ROOT, environment, good, run
from .test_multiprocessing import agents_in, broker  # noqa: F401

REACHING = ("-m", "gcbpatch")

LOOK = "import socket; print(hasattr(socket.socket, '_gevent_sock_class'))"


def child(tmp_path: Path, command: str, python: tuple[str, ...] = REACHING, **more: str) -> str:
    """What a subprocess of a program prints, started by an expression for its argv."""
    program = f"""
        import os, subprocess, sys
        LOOK = {LOOK!r}
        print(subprocess.run({command}, capture_output=True, text=True, check=True,
                             timeout={HANG_LIMIT}).stdout.strip())
    """
    done = run(tmp_path, "", program, python=python, **more)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("command", "seen"),
    [
        ("[sys.executable, '-c', LOOK]", "True"),
        ("[sys.executable, '-u', '-W', 'ignore', '-c', LOOK]", "True"),
        ("['sh', '-c', f'{sys.executable} -c \"{LOOK}\"']", "True"),
        ("[sys.executable, '-I', '-c', LOOK]", "False"),
        ("[sys.executable, '-E', '-c', LOOK]", "False"),
        ("[sys.executable, '-S', '-c', LOOK]", "False"),
        ("[sys.executable, '-c', LOOK], env={}", "False"),
    ],
)
def test_python_subprocesses_are_patched_where_they_read_the_environment(
    tmp_path: Path, command: str, seen: str
) -> None:
    assert child(tmp_path, command) == seen


def test_scripts_modules_and_grandchildren_are_patched(tmp_path: Path) -> None:
    (tmp_path / "look.py").write_text(LOOK)
    (tmp_path / "again.py").write_text(
        "import os, subprocess, sys\n"
        "for argv in (['look.py'], ['-m', 'look']):\n"
        "    subprocess.run([sys.executable, *argv], check=True)\n"
    )
    assert child(tmp_path, "[sys.executable, 'again.py']") == "True\nTrue"


def test_a_plain_line_in_a_program_does_not_reach_subprocesses(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        PATCHED,
        f"""
        import subprocess, sys
        print(subprocess.run([sys.executable, "-c", {LOOK!r}], capture_output=True).stdout)
        """,
    )
    assert done.stdout == "b'False\\n'\n", done.stderr


def test_the_command_reaches_as_far_as_the_module(tmp_path: Path) -> None:
    command = ("-c", "from gcbpatch.cli import main; main()", "run")
    assert child(tmp_path, "[sys.executable, '-c', LOOK]", command) == "True"


def test_a_subprocess_sees_no_trace_of_it_but_the_variable(tmp_path: Path) -> None:
    show = "import sys; print([p for p in sys.path if 'reach' in p], 'sitecustomize' in sys.modules"
    show += ", sys.argv, sys.flags.interactive)"
    plain = [sys.executable, "-c", show, "a"]  # Debian's Python has a sitecustomize of its own
    usual = subprocess.run(plain, capture_output=True, text=True, check=True).stdout.strip()
    assert usual.startswith("[] ") and usual.endswith(" ['-c', 'a'] 0")
    assert child(tmp_path, f"[sys.executable, '-c', {show!r}, 'a']") == usual
    paths = "import os; print(os.environ['PYTHONPATH'])"
    reach = ROOT / "gcbpatch" / "reach"
    seen = child(tmp_path, f"[sys.executable, '-c', {paths!r}]")
    assert seen == f"{reach}{os.pathsep}{ROOT}"


@pytest.mark.parametrize("fails", [False, True])
def test_a_sitecustomize_that_exists_runs_after_ours(tmp_path: Path, fails: bool) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import socket, sys\nsys.theirs = hasattr(socket.socket, '_gevent_sock_class')\n"
        + ("raise ValueError('theirs is broken')\n" if fails else "")
    )
    (folder / "usercustomize.py").write_text("import sys\nsys.user = 1\n")
    look = "import sys; print(sys.theirs, 'sitecustomize' in sys.modules and"
    look += " sys.modules['sitecustomize'].__file__)"
    program = f"""
        import subprocess, sys
        done = subprocess.run([sys.executable, "-c", {look!r}], capture_output=True, text=True)
        print(done.stdout, done.stderr)
    """
    path = f"{folder}{os.pathsep}{ROOT}"
    done = run(tmp_path, "", program, python=REACHING, PYTHONPATH=path)
    where = False if fails else str(folder / "sitecustomize.py")
    assert f"True {where}" in done.stdout
    assert ("theirs is broken" in done.stdout) == fails


def test_a_python_without_gcbpatch_or_gevent_comes_up_as_ever(tmp_path: Path) -> None:
    empty = tmp_path / "venv"
    venv.create(empty, with_pip=False)
    command = f"[{str(empty / 'bin' / 'python')!r}, '-c', LOOK]"
    assert child(tmp_path, command) == "False"


OTHERS = ("python3.12", "python3.13", "python3.10", "python3.6", "python2.7")


def other_pythons() -> list[str]:
    """Pythons of other versions on this machine."""
    found = [shutil.which(name) for name in OTHERS]
    homes = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found += [str(path) for path in sorted(homes.glob("*/bin/python"))]
    return [path for path in found if path and not _is_ours(path)]


def _is_ours(path: str) -> bool:
    argv = [path, "-c", "import sys; print(tuple(sys.version_info[:2]))"]
    done = subprocess.run(argv, capture_output=True, text=True)
    return done.returncode != 0 or done.stdout.strip() == str(tuple(sys.version_info[:2]))


def test_pythons_of_other_versions_come_up_as_ever(tmp_path: Path) -> None:
    pythons = other_pythons()
    if not pythons:
        pytest.skip("no Python of another version here")
    for path in pythons:
        assert child(tmp_path, f"[{path!r}, '-c', 'print(1)']") == "1"


def test_daemons_and_helpers_of_multiprocessing_are_not_patched(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "",
        """
        import multiprocessing, os, subprocess, sys
        from multiprocessing import forkserver, resource_tracker
        def child():
            pass
        def is_clean(pid):
            with open(f"/proc/{pid}/maps") as maps:
                return "_greenlet" not in maps.read()
        if __name__ == "__main__":
            argv = [sys.executable, "-m", "brokerd", "--address", "127.0.0.1", "--port", "0",
                    "--key-file", "key"]
            daemon = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
            assert "ready" in daemon.stdout.readline()
            daemon.terminate()
            daemon.wait()
            context = multiprocessing.get_context("forkserver")
            lock = context.Lock()
            process = context.Process(target=child)
            process.start()
            process.join()
            assert process.exitcode == 0
            assert is_clean(forkserver._forkserver._forkserver_pid)
            assert is_clean(resource_tracker._resource_tracker._pid)
            assert not is_clean(os.getpid())
            print("good")
        """,
        python=REACHING,
    )
    assert good(done), done.stderr


@pytest.mark.parametrize("argv", [["-m", "brokerd"], ["-mdpfd"], ["SCRIPT"]])
def test_a_daemon_is_known_by_its_name(tmp_path: Path, argv: list[str]) -> None:
    """The check that sitecustomize makes, in a process that was started like a daemon."""
    for name in ("brokerd", "dpfd"):
        (tmp_path / name).write_text(LOOK)
        (tmp_path / f"{name}.py").write_text(LOOK)
    command = [str(tmp_path / "brokerd") if word == "SCRIPT" else word for word in argv]
    # The folder of the program comes before the one of the daemons.
    paths = f"{tmp_path}{os.pathsep}{ROOT}"
    assert child(tmp_path, f"[sys.executable, *{command!r}]", PYTHONPATH=paths) == "False"
    (tmp_path / "other.py").write_text(LOOK)
    assert child(tmp_path, "[sys.executable, '-m', 'other']", PYTHONPATH=paths) == "True"


def test_a_subprocess_is_brokered_by_the_same_agent(
    tmp_path: Path,
    broker: str,  # noqa: F811
) -> None:
    log = tmp_path / "log"
    listens = "import socket; print(socket.create_server(('', 0)).getsockname()[0])"
    program = f"""
        import socket, subprocess, sys
        own = socket.create_server(("", 0))
        done = subprocess.run([sys.executable, "-c", {listens!r}], capture_output=True, text=True)
        assert done.stdout == own.getsockname()[0] + "\\n" == "127.0.0.1\\n", done
        print("good")
    """
    settings = {"GCB_BROKER": broker, "GCB_LOG": "INFO", "GCB_LOG_FILE": str(log)}
    done = run(tmp_path, "", program, python=REACHING, **settings)
    assert good(done), done.stderr
    assert len(agents_in(log)) == 1


def test_the_agent_itself_is_not_patched(tmp_path: Path, broker: str) -> None:  # noqa: F811
    log = tmp_path / "log"
    program = """
        import os, re, socket
        listener = socket.create_server(("", 0))
        agent = re.search(r"agent.(\\d+)", open(os.environ["GCB_LOG_FILE"]).read())[1]
        with open(f"/proc/{agent}/maps") as maps:
            assert "greenlet" not in maps.read()
        with open(f"/proc/{agent}/environ") as environ:
            assert "PYTHONPATH" not in environ.read()
        print("good")
    """
    settings = {"GCB_BROKER": broker, "GCB_LOG": "INFO", "GCB_LOG_FILE": str(log)}
    done = run(tmp_path, "", program, python=REACHING, **settings)
    assert good(done), done.stderr


def test_a_wrong_setting_of_a_subprocess_is_told_and_it_goes_on(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "",
        """
        import os, subprocess, sys
        environ = os.environ | {"GCB_LIFETIME": "soon"}
        done = subprocess.run([sys.executable, "-c", "print(1)"], env=environ,
                              capture_output=True, text=True)
        assert done.stdout == "1\\n" and "GCB_LIFETIME" in done.stderr, done
        print("good")
        """,
        python=REACHING,
    )
    assert good(done), done.stderr


def test_an_environment_without_a_path_gets_one(tmp_path: Path) -> None:
    """PYTHONPATH was not set: an empty entry would have meant the current folder."""
    show = "import os; print(repr(os.environ['PYTHONPATH']))"
    path = tmp_path / "program.py"
    path.write_text(show)
    environ = {k: v for k, v in environment().items() if k != "PYTHONPATH"}
    argv = [sys.executable, "-m", "gcbpatch", str(path)]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == f"{str(ROOT / 'gcbpatch' / 'reach')!r}\n", done.stderr
