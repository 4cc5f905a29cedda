"""The command `confed` itself: help, version, completion, and what is said of what is missing."""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version

import click
import pytest

from common.cli import confed, main

HEAVY = ("torch", "transformers", "flwr", "polars", "numpy", "ray", "opacus", "peft", "scipy")
PLAIN_LACKS = (*(m for m in HEAVY if m not in {"numpy", "scipy"}), "cornac", "jinja2", "sklearn")
BLOCK = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from common.cli import main
main({words!r})
"""


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "common.cli", *words, **environment)


def python(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def without(absent: tuple[str, ...], *words: str) -> subprocess.CompletedProcess[str]:
    return python("-c", BLOCK.format(absent=absent, words=list(words)))


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command of the tree with the words that reach it."""
    waiting: list[tuple[str, click.Command]] = [("confed", confed)]
    while waiting:
        path, command = waiting.pop()
        yield path, command
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None, name
                waiting.append((f"{path} {name}", found))


TREE = sorted(commands(), key=lambda pair: pair[0])


def test_the_tree_holds_the_commands_that_are_installed() -> None:
    assert {"confed simulate", "confed benchmark", "confed data check", "confed completion"} <= {
        path for path, _ in TREE
    }


@pytest.mark.parametrize(("path", "command"), TREE, ids=[path for path, _ in TREE])
def test_every_command_and_every_option_has_help(path: str, command: click.Command) -> None:
    assert command.help, f"{path} has no help"
    assert command.get_short_help_str()
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{path} {parameter.opts} has no help"
        else:
            # An argument has no help of its own in click: the command's text names it.
            assert parameter.make_metavar(click.Context(command)).strip("[]") in command.help


@pytest.mark.parametrize("path", [path for path, _ in TREE])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_printed_on_standard_output(
    path: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*path.split()[1:], flag])
    shown = capsys.readouterr()
    assert stopped.value.code == 0
    assert shown.out.startswith(f"Usage: {path} ")
    assert max(map(len, shown.out.splitlines())) <= 80
    assert shown.err == ""


@pytest.mark.parametrize("words", [[], ["data"]], ids=["confed", "confed data"])
def test_a_group_without_a_command_shows_its_help(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    shown = capsys.readouterr()
    assert stopped.value.code == 0
    assert "Commands:" in shown.out
    assert shown.err == ""


def test_the_version_is_that_of_the_package() -> None:
    ended = run("--version")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.strip() == f"confed, version {version('confed')}"


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(word: str) -> None:
    code = (
        "import sys, common.cli\n"
        "try:\n"
        f"    common.cli.main(['{word}'])\n"
        "except SystemExit as ended:\n"
        "    assert ended.code == 0\n"
        "print('LOADED', *{m.partition('.')[0] for m in sys.modules})"
    )
    ended = python("-c", code)
    assert ended.returncode == 0, ended.stderr
    loaded = set(ended.stdout.partition("LOADED")[2].split())
    assert "click" in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("words", [("simulate", "--help"), ("data", "check", "--help")], ids=str)
def test_help_works_without_any_extra(words: tuple[str, ...]) -> None:
    ended = without(PLAIN_LACKS, *words)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"Usage: confed {' '.join(words[:-1])} ")


@pytest.mark.parametrize(
    ("words", "absent", "package", "extra"),
    [
        (("simulate",), PLAIN_LACKS, "torch", "simulation"),
        (("simulate", "--rounds", "1"), ("flwr",), "flwr", "simulation"),
        (("benchmark", "--quick"), PLAIN_LACKS, None, "simulation"),
        (("data", "check", "."), PLAIN_LACKS, "polars", "model"),
    ],
    ids=["simulate", "simulate without Flower", "benchmark", "data check"],
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(
    words: tuple[str, ...], absent: tuple[str, ...], package: str | None, extra: str
) -> None:
    ended = without(absent, *words)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.startswith("confed: Expected the package ")
    assert package is None or f"the package {package} for" in ended.stderr
    assert ended.stderr.endswith(f"run: pip install 'confed[{extra}]'\n")


def test_a_module_of_our_own_that_is_missing_stays_a_traceback() -> None:
    ended = without(("simulations",), "simulate")
    assert ended.returncode == 1
    assert "ModuleNotFoundError" in ended.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_of_a_shell_calls_confed(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["completion", shell])
    assert stopped.value.code == 0
    assert f"_CONFED_COMPLETE={shell}_complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("confed sim", {"simulate"}),
        ("confed simulate --si", {"--sites", "--site-column"}),
        ("confed simulate --engine ", {"in-process", "flower"}),
        ("confed simulate care", {"care-and-bank", "care-and-bank-real"}),
        ("confed data ", {"check", "generate"}),
    ],
)
def test_a_shell_is_offered_what_can_follow(typed: str, offered: set[str]) -> None:
    words = typed.split(" ")
    ended = run(_CONFED_COMPLETE="bash_complete", COMP_WORDS=typed, COMP_CWORD=str(len(words) - 1))
    found = {line.rpartition(",")[2] for line in ended.stdout.split()}
    assert ended.returncode == 0
    assert found == offered


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["simulat"], "No such command 'simulat'."),
        (["completion"], "Choose from: bash, zsh, fish See"),
        (["completion", "tcsh"], "'tcsh' is not one of"),
        (["data", "check"], "Missing argument 'DIR'. See `confed data check --help`."),
        (["data", "chek", "x"], "No such command 'chek'"),
    ],
    ids=" ".join,
)
def test_a_wrong_word_is_one_line_and_exit_2(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    shown = capsys.readouterr()
    assert stopped.value.code == 2
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert says.removesuffix(" See") in shown.err
