"""Finds the codecllm package and command for the programs beside this file: those that are installed, or the build of
this tree that CWS_BUILD_DIR names (default: build/ of the repository)."""

import importlib.util
import os
import shutil
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Stop(Exception):
    """A line for the user: what is wrong and what to do."""


def build_dir():
    return os.environ.get("CWS_BUILD_DIR", os.path.join(ROOT, "build"))


def use_package():
    """Makes `import codecllm` work, also in child processes. Raises Stop when there is neither an installed package nor
    a build."""
    library = os.path.join(build_dir(), "lib", "libcws.so")
    tree = os.path.join(ROOT, "shim", "python")
    if "CWS_LIBRARY" not in os.environ and (
        "CWS_BUILD_DIR" in os.environ or importlib.util.find_spec("codecllm") is None
    ):
        if not os.path.exists(library):
            raise Stop(
                f"codecllm is not installed and {library} was not built; in the repository: pip install . (or "
                f"tools/setup.sh)"
            )
        os.environ["CWS_LIBRARY"] = library
    if "CWS_LIBRARY" in os.environ and tree not in sys.path:
        sys.path.insert(0, tree)
        os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (tree, os.environ.get("PYTHONPATH")) if p)


def find_command():
    """Path of the codecllm command. Raises Stop when it was not built."""
    places = [os.path.join(build_dir(), "bin", "codecllm")] if "CWS_LIBRARY" in os.environ else []
    places.append(os.path.join(os.path.dirname(sys.executable), "codecllm"))
    for path in (*places, shutil.which("codecllm")):
        if path and os.access(path, os.X_OK):
            return path
    raise Stop("the codecllm command was not built; in the repository: pip install . (or tools/setup.sh)")


def need(module, install):
    """Imports a module that must be there. Raises Stop with what to install."""
    try:
        return __import__(module)
    except ImportError as why:
        raise Stop(f"{module} cannot be imported ({why}); install it: {install}") from None
