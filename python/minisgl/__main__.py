"""`python -m minisgl` is `minisgl-serve`."""

import os
import sys

if __name__ == "__main__":
    # Python has put the working folder there, which may be a folder of somebody else.
    if sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
    from minisgl.launch import launch_server

    sys.exit(launch_server())
