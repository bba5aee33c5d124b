"""Runs at the start of every Python below ``tracecore run``; see ``tracecore_train.autostart``.

Takes its own directory off ``sys.path``, runs the ``sitecustomize`` it stands in front of, and
arms the start of recording in processes that may be ranks. Kept free of our other code, so that
``TRACECORE_DISABLE=1`` runs no line of ours but these.
"""

import os
import sys


def _chain() -> None:
    """Run the next ``sitecustomize`` on the path, as if ours had not been there."""
    import importlib.machinery
    import importlib.util

    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


def _may_be_rank() -> bool:
    is_disabled = os.environ.get("TRACECORE_DISABLE", "").strip().lower() in {
        "1",
        "true",
        "yes",
        "on",
    }
    return (
        os.environ.get("TRACECORE_BOOTSTRAP") == "1"
        and os.environ.get("RANK", "") != ""
        and not is_disabled
    )


def _arm() -> None:
    try:
        from tracecore_train import autostart
    except ImportError as error:
        sys.stderr.write(f"tracecore: not recording: {error}\n")
        return
    autostart.arm()


_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != _HERE]
try:
    _chain()
finally:
    if _may_be_rank():
        _arm()
