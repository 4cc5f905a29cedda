"""The command `confed`: a group whose sub-commands come from the entry points `confed.commands`."""

import sys
import threading
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any, NoReturn

import click

from common.errors import ConfedError, ConfigError
from common.interruption import STATUS, interruptible

COMMANDS = "confed.commands"
EXTRAS = {"common": "model", "client": "site", "server": "server", "simulations": "simulation"}
"""What to install for the sub-commands of a package of ours."""


class EntryPointGroup(click.Group):
    """A click group that finds its commands through entry points and loads them when asked.

    Args:
        points: name of the entry-point group.
        prefix: words that reach this group, for messages.
    """

    def __init__(
        self, *args: Any, points: str = COMMANDS, prefix: str = "confed", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.points, self.prefix = points, prefix

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the installed sub-commands, sorted."""
        found = (point.name for point in entry_points(group=self.points))
        return sorted({*super().list_commands(ctx), *found})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The sub-command of that name, or None."""
        for point in entry_points(group=self.points, name=cmd_name):
            try:
                command = point.load()
            except ModuleNotFoundError as error:
                return self._unloadable(point, error)
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
            for point in entry_points(group=self.points, name=ctx.invoked_subcommand or ""):
                raise self._missing(point, error) from error
            raise

    def _missing(self, point: EntryPoint, error: ModuleNotFoundError) -> Exception:
        """What to say of a missing package; a module of our own that is missing is a bug."""
        package = (error.name or "").partition(".")[0]
        if not package or package in EXTRAS:
            return error
        extra = EXTRAS.get(point.module.partition(".")[0])
        source = f"confed[{extra}]" if extra else point.dist.name if point.dist else point.module
        return missing_package(package, f"{self.prefix} {point.name}", source)

    def _unloadable(self, point: EntryPoint, error: ModuleNotFoundError) -> click.Command:
        """Stands for a command that does not load, so that the others and `--help` still work."""

        def refuse(_words: tuple[str, ...]) -> NoReturn:
            raise self._missing(point, error) from error

        return click.Command(
            point.name,
            callback=refuse,
            params=[click.Argument(["_words"], nargs=-1, type=click.UNPROCESSED)],
            short_help="(not installed whole)",
            help=f"Cannot be loaded: the package {error.name} is not installed.",
            context_settings={"ignore_unknown_options": True},
        )


def missing_package(package: str, command: str, source: str) -> ConfigError:
    """What to say of a package that a command needs, and what to install."""
    return ConfigError(
        f"Expected the package {package} for `{command}`, got none; run: pip install '{source}'"
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
