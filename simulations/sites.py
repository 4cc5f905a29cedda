"""Where a simulation's sites lie: in memory, or in folders laid out as a deployed site's."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from flwr.app import Context

from client.site import SiteRecords
from common.caps import SiteCaps
from common.catalog import read_catalog, write_catalog
from common.interactions import read_interactions, write_interactions

SIMULATED = SiteCaps(
    epsilon=1e6, delta=0.1, max_grad_norm=1e6, noise_multiplier=0.0, private_only=False
)
"""A researcher owns the data and may ask for anything, the run without privacy included."""


@dataclass(frozen=True, kw_only=False)
class MemorySites:
    """Sites by partition number, in this process.

    Attributes:
        sites: one entry a partition.
    """

    sites: tuple[SiteRecords, ...]

    def __call__(self, context: Context) -> SiteRecords:
        """The records of a simulated node."""
        return self.sites[int(context.node_config["partition-id"])]


@dataclass(frozen=True, kw_only=False)
class FolderSites:
    """Sites by partition number, each in a folder that `write_site` made.

    Attributes:
        root: the folder of all of them.
    """

    root: Path

    def __call__(self, context: Context) -> SiteRecords:
        """Read the records of a simulated node."""
        return read_site(self.root / f"{int(context.node_config['partition-id']):05d}")


def write_site(site: SiteRecords, root: Path, number: int) -> None:
    """Write one site in the layout of a data folder, with its contract in site.json."""
    folder = root / f"{number:05d}"
    write_catalog(site.catalog, folder)
    write_interactions(site.interactions, site.catalog, folder)
    contract = {
        "name": site.name,
        "domain": site.domain,
        "declared_subjects": site.declared_subjects,
        "caps": asdict(site.caps),
    }
    (folder / "site.json").write_text(json.dumps(contract))


def read_site(folder: Path) -> SiteRecords:
    """Read what `write_site` wrote."""
    contract = json.loads((folder / "site.json").read_text())
    catalog = read_catalog(folder, domain=contract["domain"])
    interactions, _ = read_interactions(folder, catalog)
    return SiteRecords(
        name=contract["name"],
        domain=contract["domain"],
        catalog=catalog,
        interactions=interactions,
        declared_subjects=contract["declared_subjects"],
        caps=SiteCaps(**contract["caps"]),
    )
