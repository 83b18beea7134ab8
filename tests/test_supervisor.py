"""The supervisor, with workers that die in every way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from layer_energy import supervisor
from layer_energy.supervisor import LOST, STOPPED, supervise


def worker(code):
    """A command that appends a byte to ``log`` and runs ``code``, which may look at ``n``."""
    program = (
        "import os, signal, sys\n"
        "log = open(sys.argv[1], 'a+')\n"
        "log.seek(0)\n"
        "n = len(log.read())\n" + code
    )
    return lambda log: [sys.executable, "-c", program, str(log)]


PROGRESS = "log.write('x'); log.flush()\n"


@pytest.mark.parametrize(
    ("code", "last", "starts"),
    [
        ("sys.exit(0)", 0, 1),
        ("sys.exit(2)", 2, 1),
        (PROGRESS + f"sys.exit({LOST} if n < 4 else 0)", 0, 5),
        (PROGRESS + "os.kill(os.getpid(), signal.SIGSEGV) if n < 2 else sys.exit(3)", 3, 3),
        (f"sys.exit({LOST})", STOPPED, 3),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, 1),
    ],
)
def test_restarts_only_what_lost_its_device_and_made_progress(tmp_path, code, last, starts):
    log = tmp_path / "log"
    log.touch()
    restarts = []
    code = supervise(
        lambda: worker(code)(log), progress=lambda: log.stat().st_size, on_restart=restarts.append
    )
    assert code == last
    assert len(restarts) == starts - 1


def test_leaves_the_first_ctrl_c_to_the_worker(tmp_path):
    script = tmp_path / "supervisor.py"
    script.write_text(
        "import sys\n"
        "from layer_energy.supervisor import supervise\n"
        "code = '''import signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *a: sys.exit(3))\n"
        'print("ready", flush=True)\n'
        "time.sleep(30)'''\n"
        "sys.exit(supervise(lambda: [sys.executable, '-c', code], lambda: 0))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, start_new_session=True,
        env=environment,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    start = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=20) == 3
    assert time.monotonic() - start < 20
    process.stdout.close()


def test_a_worker_that_hangs_is_ended_and_none_is_started_at_the_end(monkeypatch):
    monkeypatch.setattr("layer_energy.supervisor.GRACE_S", 0.5)
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    start = time.monotonic()
    assert supervise(lambda: sleeper, lambda: 0, start) == STOPPED
    assert time.monotonic() - start < 20
    lost = [sys.executable, "-c", f"import sys; sys.exit({LOST})"]
    progress = iter(range(100))
    assert supervise(lambda: lost, lambda: next(progress), time.monotonic() + 30) == STOPPED
    assert next(progress) == 1


def test_a_worker_that_hangs_is_aborted_and_the_next_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "HANG_S", 1.0)
    monkeypatch.setattr(supervisor, "START_S", 60.0)
    log = tmp_path / "log"
    log.touch()
    hangs = worker(PROGRESS + "import time\nif n == 0:\n    time.sleep(60)\nsys.exit(0)")
    codes = []
    code = supervise(
        lambda: hangs(log), progress=lambda: log.stat().st_size, on_restart=codes.append,
        silent_s=lambda: time.time() - log.stat().st_mtime,
    )  # fmt: skip
    assert code == 0
    assert codes == [-signal.SIGABRT]


def test_a_worker_may_take_long_to_start(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "HANG_S", 0.1)
    monkeypatch.setattr(supervisor, "START_S", 60.0)
    begun_s = time.monotonic()
    code = supervise(
        lambda: [sys.executable, "-c", "import time; time.sleep(1.5)"], progress=lambda: 0,
        silent_s=lambda: 10.0 + time.monotonic() - begun_s,
    )  # fmt: skip
    assert code == 0


def test_what_an_earlier_run_left_is_no_silence_of_this_one(tmp_path):
    """A campaign that is gone on with a day later: its journal is a day old."""
    code = supervise(
        lambda: [sys.executable, "-c", "import time; time.sleep(1.5)"], progress=lambda: 0,
        silent_s=lambda: 86400.0,
    )  # fmt: skip
    assert code == 0


def test_sighup_reaches_the_worker(tmp_path):
    script = tmp_path / "supervisor.py"
    script.write_text(
        "import sys\n"
        "from layer_energy.supervisor import supervise\n"
        "code = '''import signal, sys, time\n"
        "signal.signal(signal.SIGHUP, lambda *a: sys.exit(7))\n"
        'print("ready", flush=True)\n'
        "time.sleep(30)'''\n"
        "sys.exit(supervise(lambda: [sys.executable, '-c', code], lambda: 0))\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGHUP)
    assert process.wait(20) == 7
