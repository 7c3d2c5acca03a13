"""vssm lens: the command around the server."""

import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from vssm_cli.command import main

STARTED = """
import sys, time
start = time.process_time()
import torch
begin = time.process_time()
import vssm.lens.server as server
def ready(app, listener):
    print(time.process_time() - begin, begin - start)
server.serve = ready
from vssm_cli.command import main
main(["lens", "--port", "0", "--no-browser"])
"""


def test_it_answers_until_ctrl_c(tmp_path):
    command = [sys.executable, "-m", "vssm_cli", "lens", "--port", "0", "--no-browser", "--models", "vmamba_nano"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        assert process.stdout is not None
        found = re.fullmatch(r"vssm lens: (http://127\.0\.0\.1:(\d+)/) \(Ctrl-C ends it\)\n", process.stdout.readline())
        assert found
        with urllib.request.urlopen(found[1], timeout=30) as page:
            assert "<title>vssm lens</title>" in page.read().decode()
        with urllib.request.urlopen(f"{found[1]}api/choices", timeout=30) as choices:
            assert '"models":["vmamba_nano"]' in choices.read().decode()
        others = [info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
        for address in {address for address in others if not address.startswith("127.0.0.1")}:
            with pytest.raises(OSError):
                socket.create_connection((address, int(found[2])), timeout=2).close()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, "")
    finally:
        process.kill()
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_it_is_ready_soon_after_torch():
    """In seconds of the processor: 2, or on a slow machine at most twice what torch takes itself."""
    for _ in range(3):
        run = subprocess.run([sys.executable, "-c", STARTED], capture_output=True, text=True, check=True)
        seconds, torch_itself = map(float, run.stdout.splitlines()[-1].split())
        if seconds < 2:
            break
    assert seconds < max(2, 2 * torch_itself)


def test_a_port_that_is_taken(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["lens", "--port", str(port), "--no-browser"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert (
        shown.err == f"vssm: error: port {port} cannot be used (Address already in use); choose another with --port\n"
    )


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--port", "65536"], 2, "--port must be from 0 to 65535, not 65536"),
        (["--port", "x"], 2, "--port"),
        (["--checkpoint", "x"], 2, "unknown argument --checkpoint; nearest: --checkpoints"),
        (["--models", "vmamba_tny"], 1, "unknown model 'vmamba_tny'; nearest: vmamba_tiny"),
        (
            ["--checkpoints", "nowhere"],
            1,
            "nowhere is not a folder; --checkpoints takes a folder of checkpoints or runs",
        ),
    ],
)
def test_bad_arguments_are_one_line(argv, code, words, capsys):
    assert main(["lens", *argv]) == code
    shown = capsys.readouterr()
    assert shown.out == "" and words in shown.err and shown.err.count("\n") == 1


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_a_missing_extra_is_named(missing, tmp_path):
    """Before torch is loaded."""
    code = f"""
import sys
sys.modules[{missing!r}] = None
from vssm_cli.command import main
code = main(["lens"])
assert "torch" not in sys.modules
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        done.stderr == f"vssm: error: this command needs {missing}, which is not installed: pip install 'vssm[lens]'\n"
    )
