"""`python -m minisgl` is `minisgl-serve`."""

import sys

from minisgl.launch import main

if __name__ == "__main__":
    sys.exit(main())
