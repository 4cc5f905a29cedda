"""The command `confed`: a group whose sub-commands come from the entry points `confed.commands`."""

import sys
import threading
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any, NoReturn

import click

from common.errors import ConfedError, ConfigError
from common.interruption import STATUS, interruptible

GROUP = "confed.commands"
EXTRAS = {"common": "model", "client": "site", "server": "server", "simulations": "simulation"}
"""What to install for the sub-commands of a package of ours."""


class EntryPointGroup(click.Group):
    """A click group that finds its commands through entry points and loads them when asked."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the installed sub-commands, sorted."""
        return sorted({*super().list_commands(ctx), *(p.name for p in entry_points(group=GROUP))})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The sub-command of that name, or None."""
        for point in entry_points(group=GROUP, name=cmd_name):
            try:
                command = point.load()
            except ModuleNotFoundError as error:
                return _unloadable(point, error)
            return command if isinstance(command, click.Command) else None
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the sub-command; a package that is not installed is named with its extra.

        Raises:
            ConfigError: a package that the sub-command needs is not installed.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(STATUS) from None
        except ModuleNotFoundError as error:
            for point in entry_points(group=GROUP, name=ctx.invoked_subcommand or ""):
                raise _missing(point, error) from error
            raise


def _missing(point: EntryPoint, error: ModuleNotFoundError) -> Exception:
    """What to say of a missing package; a module of our own that is missing is a bug and stays."""
    package = (error.name or "").partition(".")[0]
    if not package or package in EXTRAS:
        return error
    extra = EXTRAS.get(point.module.partition(".")[0])
    source = f"confed[{extra}]" if extra else point.dist.name if point.dist else point.module
    return ConfigError(
        f"Expected the package {package} for `confed {point.name}`, got none; "
        f"run: pip install '{source}'"
    )


def _unloadable(point: EntryPoint, error: ModuleNotFoundError) -> click.Command:
    """Stands for a command that does not load, so that the others and `--help` still work."""

    def refuse(_words: tuple[str, ...]) -> NoReturn:
        raise _missing(point, error) from error

    return click.Command(
        point.name,
        callback=refuse,
        params=[click.Argument(["_words"], nargs=-1, type=click.UNPROCESSED)],
        short_help="(not installed whole)",
        help=f"Cannot be loaded: the package {error.name} is not installed.",
        context_settings={"ignore_unknown_options": True},
    )


@click.group(
    cls=EntryPointGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
@click.version_option(version("confed"), prog_name="confed")
def confed() -> None:
    """The confidential, federated recommender.

    Sites fine-tune one recommender together; records never leave a site.
    """


@confed.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), metavar="SHELL")
def completion(shell: str) -> None:
    """Print the completion script of a SHELL: bash, zsh or fish.

    For bash: eval "$(confed completion bash)"
    """
    from click.shell_completion import get_completion_class  # noqa: PLC0415

    found = get_completion_class(shell)
    if found is not None:
        click.echo(found(confed, {}, "confed", "_CONFED_COMPLETE").source())


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line; a refusal is one line on standard error and exit 2 or 3."""
    said = threading.Event()

    def say(message: str = "interrupted; nothing half-written was kept.") -> None:
        if not said.is_set():
            said.set()
            click.echo(f"confed: {' '.join(message.split())}", err=True)

    with interruptible(say) as interrupted:
        try:
            message, status = _outcome(argv)
        except (Exception, KeyboardInterrupt):
            # An import or a library that is cut short leaves errors of any kind behind it.
            if not interrupted.is_set():
                raise
            message, status = "", STATUS
        if interrupted.is_set():
            say()
            status = STATUS
        elif message:
            say(message)
    sys.exit(status)


def _outcome(argv: list[str] | None) -> tuple[str, int]:
    """What to say on standard error, and the exit status."""
    try:
        result = confed.main(args=argv, prog_name="confed", standalone_mode=False)
    except ConfedError as error:
        return str(error), error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "")
        return "", 0
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "confed"
        return f"{_sentence(error.format_message())} See `{path} --help`.", 2
    except click.ClickException as error:
        return error.format_message(), 2
    return "", result if isinstance(result, int) else 0


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text if text.endswith((".", "?", "!")) else f"{text}."


if __name__ == "__main__":
    main()
