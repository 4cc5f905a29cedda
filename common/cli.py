"""The command `confed`: a group whose sub-commands come from the entry points `confed.commands`."""

import sys
from importlib.metadata import entry_points, version

import click

from common.errors import ConfedError

GROUP = "confed.commands"


class EntryPointGroup(click.Group):
    """A click group that finds its commands through entry points and loads them when asked."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the installed sub-commands, sorted."""
        return sorted({*super().list_commands(ctx), *(p.name for p in entry_points(group=GROUP))})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The sub-command of that name, or None."""
        for point in entry_points(group=GROUP, name=cmd_name):
            command = point.load()
            return command if isinstance(command, click.Command) else None
        return super().get_command(ctx, cmd_name)


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
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a SHELL.

    For bash: eval "$(confed completion bash)"
    """
    from click.shell_completion import get_completion_class  # noqa: PLC0415

    found = get_completion_class(shell)
    if found is not None:
        click.echo(found(confed, {}, "confed", "_CONFED_COMPLETE").source())


def main(argv: list[str] | None = None) -> int:
    """Run the command line; a refusal is one line on standard error and exit 2 or 3."""
    try:
        result = confed.main(args=argv, prog_name="confed", standalone_mode=False)
    except ConfedError as error:
        click.echo(f"confed: {error}", err=True)
        sys.exit(error.exit_code)
    except click.UsageError as error:
        click.echo(f"confed: {error.format_message()} See `confed --help`.", err=True)
        sys.exit(2)
    except click.ClickException as error:
        click.echo(f"confed: {error.format_message()}", err=True)
        sys.exit(2)
    except click.Abort:
        click.echo("confed: interrupted; nothing half-written was kept.", err=True)
        sys.exit(130)
    sys.exit(result if isinstance(result, int) else 0)


if __name__ == "__main__":
    main()
