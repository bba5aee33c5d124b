"""Our options and torchrun's never meet."""

from __future__ import annotations

import pytest

from tracecore_integrations.launch_options import (
    HELP,
    SWITCHES,
    VALUE_OPTIONS,
    LaunchOptions,
    misplaced,
    parse_options,
)
from tracecore_train.errors import ConfigError

OURS = (*VALUE_OPTIONS, *SWITCHES)


def test_no_option_of_ours_collides_with_torchruns() -> None:
    """None of our names is a torchrun option, a prefix of one, or has one as its prefix."""
    run = pytest.importorskip("torch.distributed.run")
    theirs = [
        name
        for action in run.get_args_parser()._actions
        for name in action.option_strings
        if name not in ("-h", "--help")
    ]
    assert "--nproc-per-node" in theirs
    for ours in OURS:
        for name in theirs:
            assert not name.startswith(ours), (ours, name)
            assert not ours.startswith(name), (ours, name)


@pytest.mark.parametrize("is_joined", [True, False])
def test_values_may_be_joined_or_apart(is_joined: bool) -> None:
    """--name value and --name=value mean the same; --fault may be repeated."""
    pairs = [("--output", "o=1"), ("--fault", "a"), ("--job-id", "7"), ("--fault", "b")]
    ours = [word for n, v in pairs for word in ([f"{n}={v}"] if is_joined else [n, v])]
    options, rest = parse_options([*ours, "--quiet", "train.py"])
    assert options == LaunchOptions(output="o=1", job_id="7", faults=("a", "b"), is_quiet=True)
    assert rest == ["train.py"]


def test_everything_from_the_first_foreign_token_is_torchruns() -> None:
    """What follows a token that is not ours is handed on untouched, whatever it looks like."""
    theirs = ["--nnodes=1", "x.py", "--quiet", "--output", "-h", "--fault=z"]
    options, rest = parse_options(["--quiet", *theirs])
    assert rest == theirs
    assert options == LaunchOptions(is_quiet=True)


@pytest.mark.parametrize("argv", [["-h"], ["--help"], ["--quiet", "--help", "x.py"]])
def test_help_is_ours_only_in_front(argv: list[str]) -> None:
    """-h before torchrun's part asks for our help."""
    assert parse_options(argv)[0].is_help


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--output"], "--output needs a value"),
        (["--job-id="], "--job-id needs a value, got an empty one"),
        (["--quiet=yes", "x.py"], "--quiet takes no value, got 'yes'"),
    ],
)
def test_a_missing_or_extra_value_is_an_error(argv: list[str], message: str) -> None:
    """The message names the option."""
    with pytest.raises(ConfigError, match=message):
        parse_options(argv)


def test_help_names_every_option_and_torchruns_help() -> None:
    """The help text lists what exists and says where the rest is."""
    assert all(name in HELP for name in OURS)
    assert "torchrun --help" in HELP


def test_a_misplaced_option_is_found() -> None:
    """The first token spelled like an option of ours is given, with or without value."""
    assert misplaced(["--nnodes", "1", "--job-id=3", "--quiet"]) == "--job-id=3"
    assert misplaced(["--nnodes", "1", "x.py"]) is None
