"""`confed server` and `confed adapter`: what an operator runs besides Flower's own commands."""

import json
from pathlib import Path

import click


@click.group()
def server() -> None:
    """Look after the coordinator of a consortium."""


@server.command()
@click.argument("state", type=click.Path(path_type=Path, file_okay=False))
@click.argument("superlink", required=False, default="")
@click.option(
    "--app",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Folder of the Flower app, the one the run was started from.  [default: .]",
)
@click.option("--run-config", default="", help="More of the run configuration, as for `flwr run`.")
@click.option(
    "--federation-config", default="", help="Of a simulated federation, as for `flwr run`."
)
@click.option("--dry-run", is_flag=True, help="Only say what would be run.")
def resume(
    state: Path,
    superlink: str,
    app: Path,
    run_config: str,
    federation_config: str,
    *,
    dry_run: bool,
) -> int:
    """Go on with a run after the last round committed in STATE, through SUPERLINK.

    The plan comes from the checkpoint; a damaged checkpoint falls back one round.
    """
    from server.resume import resume_run  # noqa: PLC0415

    more = ["--run-config", run_config] if run_config else []
    more += ["--federation-config", federation_config] if federation_config else []
    return resume_run(state, superlink, app=app, more=more, dry_run=dry_run)


@server.command()
@click.argument("state", type=click.Path(path_type=Path, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(state: Path, *, as_json: bool) -> None:
    """Say which round of which run was committed last in STATE, and who took part."""
    from server.resume import show_status  # noqa: PLC0415

    show_status(state, as_json=as_json)


@click.group()
def adapter() -> None:
    """Check what a server released."""


@adapter.command()
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--public-key", type=click.Path(path_type=Path, dir_okay=False), help="Of the server, PEM."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(path: Path, public_key: Path | None, *, as_json: bool) -> None:
    """Check the adapter file PATH against the signed release beside it.

    Exit status: 0 it fits, 2 no adapter or no release, 3 another key, signature or tensors.
    """
    from common.adapter import load_adapter  # noqa: PLC0415
    from common.release import read_release, release_path, require_released  # noqa: PLC0415
    from common.signing import read_public_key  # noqa: PLC0415

    key = None if public_key is None else read_public_key(public_key)
    _tensors, manifest = load_adapter(path)
    told = read_release(release_path(path), key)
    require_released(told, manifest)
    if as_json:
        click.echo(json.dumps(told))
        return
    from server.resume import show_release  # noqa: PLC0415

    show_release(told, believed=key is None)
