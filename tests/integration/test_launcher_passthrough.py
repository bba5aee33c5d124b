"""`tracecore run` behaves like torchrun: same children, same output, same exit code."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.support.launches import Launch

if TYPE_CHECKING:
    from pathlib import Path

REPORT = """
import json, os, sys
print(json.dumps([sys.argv, os.getcwd(), __name__, sys.path[0], sys.stdin.read(),
                  {k: v for k, v in os.environ.items() if k not in %r}]))
"""
VOLATILE = ("MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE", "_")


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    return Launch(tmp_path)


def test_a_script_sees_what_torchrun_would_show_it(launch: Launch) -> None:
    """Arguments that look like ours, directory, __main__, sys.path, stdin, environment."""
    script = launch.script(REPORT % (VOLATILE,))
    arguments = (
        "--nproc-per-node",
        "1",
        str(script),
        "--output",
        "x",
        "--fault=y",
        "-h",
        "--quiet",
    )
    ours, plain = launch.run(*arguments), launch.torchrun(*arguments)
    assert (ours.returncode, plain.returncode) == (0, 0), ours.stderr
    (*seen, seen_environ), (*expected, expected_environ) = (
        json.loads(ended.stdout) for ended in (ours, plain)
    )
    assert seen == expected
    added = {k: v for k, v in seen_environ.items() if expected_environ.get(k) != v}
    assert set(expected_environ) <= set(seen_environ)
    assert set(added) == {
        "PYTHONPATH",
        "TRACECORE_BOOTSTRAP",
        "TRACECORE_ENDPOINT",
        "TRACECORE_JOB_ID",
    }
    assert added["TRACECORE_ENDPOINT"].startswith(f"unix:{launch.runtime}/")
    assert added["PYTHONPATH"].split(os.pathsep)[0].endswith("tracecore_train/bootstrap")


@pytest.mark.parametrize("body", ["import sys; sys.exit(3)", "raise RuntimeError('boom')"])
def test_a_failing_script_ends_like_under_torchrun(launch: Launch, body: str) -> None:
    """Exit code and the failure report on standard error are torchrun's."""
    script = launch.script(body)
    ours = launch.run("--nproc-per-node", "1", str(script))
    plain = launch.torchrun("--nproc-per-node", "1", str(script))
    assert ours.returncode == plain.returncode != 0
    last = [line for line in plain.stderr.splitlines() if "ChildFailedError" in line]
    assert last
    assert all(line in ours.stderr for line in last)
    assert "exitcode  :" in ours.stderr
    assert "tracecore_integrations" not in ours.stderr


def test_a_module_runs_as_a_module(launch: Launch) -> None:
    """-m runs a module of the working directory."""
    launch.script("print('module', __name__)", "some_module.py")
    ended = launch.run("--nproc-per-node", "1", "-m", "some_module", "--quiet")
    assert (ended.returncode, ended.stdout) == (0, "module __main__\n")


def test_a_program_runs_without_python(launch: Launch) -> None:
    """--no-python runs any program."""
    ended = launch.run("--nproc-per-node", "1", "--no-python", "sh", "-c", 'echo "rank $RANK"')
    assert (ended.returncode, ended.stdout) == (0, "rank 0\n")


def test_torchrun_options_keep_their_abbreviations(launch: Launch) -> None:
    """--nproc-per is still --nproc-per-node."""
    script = launch.script("import os; print(os.environ['WORLD_SIZE'])")
    ended = launch.run("--nproc-per", "2", str(script))
    assert (ended.returncode, ended.stdout) == (0, "2\n2\n")


def test_usage_errors_are_torchruns_and_start_nothing(launch: Launch) -> None:
    """Bad torchrun options end as under torchrun, before a sidecar is started."""
    ours, plain = launch.run("--nonsense", "x.py"), launch.torchrun("--nonsense", "x.py")
    assert ours.returncode == plain.returncode == 2
    assert "usage: torchrun" in ours.stderr
    assert not launch.output.exists()


def test_our_option_among_torchruns_is_explained(launch: Launch) -> None:
    """An option of ours behind torchrun's is refused with the way out."""
    ended = launch.run("--nproc-per-node", "1", "--quiet")
    assert ended.returncode == 2
    assert "--quiet is an option of tracecore run and stands before torchrun's" in ended.stderr


def test_disabled_is_plain_torchrun(launch: Launch) -> None:
    """TRACECORE_DISABLE=1 starts no sidecar and adds no variable."""
    script = launch.script("import os; print(*(k for k in os.environ if 'BOOTSTRAP' in k))")
    ended = launch.run("--nproc-per-node", "1", str(script), TRACECORE_DISABLE="1")
    assert (ended.returncode, ended.stdout.strip(), ended.stderr) == (0, "", "")
    assert not launch.output.exists()
    assert not launch.runtime.exists()


@pytest.mark.parametrize(
    ("arguments", "environ", "expected"),
    [
        (("--fault", "slow:rank=x,ms=5"), {}, "rank='x' is not a whole number"),
        ((), {"TRACECORE_JOBID": "7"}, "did you mean TRACECORE_JOB_ID"),
        ((), {"TRACECORE_FLUSH_INTERVAL": "soon"}, "TRACECORE_FLUSH_INTERVAL"),
        (("--job-id",), {}, "--job-id needs a value"),
    ],
)
def test_bad_settings_start_nothing(
    launch: Launch, arguments: tuple[str, ...], environ: dict[str, str], expected: str
) -> None:
    """A bad setting of ours is exit code 2 with one line that names it."""
    script = () if "--job-id" in arguments else (str(launch.script("print('ran')")),)
    ended = launch.run(*arguments, *script, **environ)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert expected in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
