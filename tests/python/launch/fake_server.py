"""minisgl-serve with the fake rank of the engine's tests."""

import sys
from pathlib import Path

from minisgl import launch_server
from minisgl.engine.client import RestartPolicy

if __name__ == "__main__":
    rank = Path(__file__).parents[1] / "engine" / "fake_rank.py"
    status = launch_server(
        rank_command=(sys.executable, str(rank)),
        restart=RestartPolicy(max_failures=4, first_delay=0.1, max_replays=1),
    )
    sys.exit(status)
