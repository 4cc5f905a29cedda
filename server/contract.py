"""The contract of a consortium: who takes part, with what weight, under which key.

Without one, any node that connects may join under a new name: that is for a simulation. Public.
"""

import tomllib
from pathlib import Path

from pydantic import Field

from common.entries import is_name
from common.errors import ConfigError, SecurityRefused
from common.limits import LIMITS
from common.plan import Frozen, parse
from common.signing import PublicKey
from common.wire import Identity


class ContractSite(Frozen):
    """One `[[sites]]` of the file."""

    name: str
    domain: str
    public_key: str
    """First key of the site's ledger, 64 hexadecimal digits."""
    declared_subjects: int = Field(ge=1, le=LIMITS.declared_subjects)
    weight: float = Field(default=1.0, gt=0, le=1e6)


class Contract(Frozen):
    """All of them."""

    sites: list[ContractSite] = Field(min_length=1, max_length=LIMITS.sites)

    def weights(self) -> dict[str, float]:
        """Weight by site."""
        return {site.name: site.weight for site in self.sites}

    def keys(self) -> dict[str, PublicKey]:
        """First public key by site."""
        return {site.name: PublicKey.from_hex(site.public_key) for site in self.sites}

    def require(self, who: Identity) -> None:
        """Refuse who is not in the contract, or says other facts than it.

        Raises:
            SecurityRefused: an unknown site, another domain or number of subjects.
        """
        found = next((site for site in self.sites if site.name == who.site), None)
        if found is None:
            raise SecurityRefused(f"Expected a site of the contract, got {who.site!r}.")
        said = (who.domain, who.declared_subjects)
        if said != (found.domain, found.declared_subjects):
            raise SecurityRefused(
                f"Expected site {who.site} with the domain and the subjects of the contract."
            )


def read_contract(path: Path) -> Contract:
    """Read a contract, TOML with one `[[sites]]` a site.

    Raises:
        ConfigError: no file, not a contract, a name twice, or a key that is none.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        raise ConfigError(f"Expected a contract as TOML at {path}, got none.") from None
    contract: Contract = parse(Contract, values, where=path.name)
    names = [site.name for site in contract.sites]
    odd = sorted({n for n in names if names.count(n) > 1 or not is_name(n)})
    if odd:
        raise ConfigError(f"{path.name}: expected plain names, each once, got {odd[0]!r}.")
    try:
        contract.keys()
    except SecurityRefused as error:
        raise ConfigError(f"{path.name}: sites: {error}") from None
    return contract
