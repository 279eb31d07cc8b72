"""python -m codecllm: the codecllm command."""

import os
import sys

from codecllm import command_path
from codecllm._error import Error

try:
    command = command_path()
    os.execv(command, ["codecllm"] + sys.argv[1:])
except (Error, OSError) as why:
    sys.exit(f"codecllm: {why}")
