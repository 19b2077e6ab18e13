"""launch_server() as it may be called: by any program, with settings or with the command line."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

import minisgl
from minisgl import ServerArgs
from minisgl.distributed import DistributedInfo
from minisgl.launch import launch_server
from tests.python.launch.servers import SERVER, ServerProcess, get, make_model, process_name

FAKE_RANK = SERVER.parents[1] / "engine" / "fake_rank.py"


def test_it_is_where_it_is_looked_for() -> None:
    assert minisgl.launch_server is launch_server


def test_without_arguments_it_reads_the_command_line_of_any_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """(That it also serves is what the other tests of this folder show; see fake_server.py.)"""
    monkeypatch.setattr("sys.argv", ["my_program.py", "--port", "http"])
    for options in ({}, {"run_shell": True}):
        with pytest.raises(SystemExit) as end:
            launch_server(**options)  # type: ignore[arg-type]
        assert end.value.code == 2
        assert capsys.readouterr().err.splitlines()[-1] == (
            "minisgl-serve: error: argument --port: expected a whole number such as 4096 or 64K, "
            "got 'http'"
        )
    monkeypatch.setattr("sys.argv", ["my_program.py"])
    monkeypatch.setenv("MINISGL_PORT", "70000")
    with pytest.raises(SystemExit):
        launch_server()
    assert "MINISGL_PORT: must be between 0 and 65535, got 70000" in capsys.readouterr().err


def test_with_settings_it_reads_no_command_line(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from minisgl import ServerArgs, launch_server\n"
        f"command = (sys.executable, {str(FAKE_RANK)!r})\n"
        "args = ServerArgs(model=sys.argv[-1], port=0)\n"
        "sys.exit(launch_server(args, rank_command=command))\n"
    )
    model = make_model(tmp_path / "tiny")
    flags = ("--no-such-flag", "--api-key", "what-nobody-should-see")
    server = ServerProcess(model, tmp_path / "tmp", *flags, program=("-c", program))
    try:
        assert get(server.wait_ready(), "/ready")[0] == 200
        # The command line is gone, and with it the secrets that stood there.
        assert process_name(server.process.pid) == "minisgl-serve"
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    finally:
        if server.process.poll() is None:
            server.end()


def test_what_it_takes() -> None:
    with pytest.raises(TypeError, match="takes ServerArgs, got True; run_shell=True starts"):
        launch_server(True)  # type: ignore[arg-type]
    args = ServerArgs(tp_info=DistributedInfo(1, 2))
    with pytest.raises(ValueError, match=r"tp_info must be rank 0 .*rank=1, size=2"):
        launch_server(args)
