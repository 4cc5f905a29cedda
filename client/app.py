"""The ClientApp: wiring only. What a site answers is decided in `session`, checked in `egress`."""

import logging
from collections.abc import Callable
from enum import IntEnum

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from client.permits import PermitSource, deployed_permits
from client.session import session_for
from client.site import RandomnessSource, SiteRecords, SiteSource, open_configured_site
from common.errors import ConfedError, ConfigError, DataError, ModelError, RefusedError
from common.randomness import SecureRandomness
from common.textpath import ActivationStore
from common.wire import Identity, pack_answer, pack_identity, unpack_order

LOG = logging.getLogger("confed.site")
IN_MEMORY = ActivationStore()


class Code(IntEnum):
    """The closed list of what a site says when it does not answer; no exception text travels."""

    INTERNAL = 1000
    CONFIGURATION = 1001
    DATA = 1002
    MODEL = 1003
    REFUSED = 1004


_CODES: tuple[tuple[type[ConfedError], Code], ...] = (
    (ConfigError, Code.CONFIGURATION),
    (DataError, Code.DATA),
    (ModelError, Code.MODEL),
    (RefusedError, Code.REFUSED),
)


def code_of(error: Exception) -> Code:
    """The code under which an exception leaves the site."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    return Code.INTERNAL


def build(
    open_site: SiteSource = open_configured_site,
    randomness: RandomnessSource = lambda _site, _round: SecureRandomness(),
    store: ActivationStore = IN_MEMORY,
    permits: PermitSource = deployed_permits,
) -> ClientApp:
    """Assemble a ClientApp.

    Args:
        open_site: where a node's records come from.
        randomness: of samples and noise; a deployed site has the secure one and no other.
        store: of activations; in memory at a deployed site.
        permits: the ledgers that pay; a deployed site has its own and no other.
    """
    app = ClientApp()

    @app.query()
    def identify(message: Message, context: Context) -> Message:
        return _answered(message, lambda: _identity(open_site(context)))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        def body() -> RecordDict:
            order, adapter = unpack_order(message.content)
            session = session_for(
                context.run_id,
                str(context.node_id),
                order.plan,
                open_site=lambda: open_site(context),
                store=store,
                permits=permits,
            )
            return pack_answer(session.train(order, adapter, randomness))

        return _answered(message, body)

    return app


def _identity(records: SiteRecords) -> RecordDict:
    return pack_identity(
        Identity(
            site=records.name,
            domain=records.domain,
            items=len(records.catalog),
            catalog=records.catalog.digest,
            declared_subjects=records.declared_subjects,
        )
    )


def _answered(message: Message, body: Callable[[], RecordDict]) -> Message:
    try:
        return Message(body(), reply_to=message)
    except Exception as error:
        code = code_of(error)
        # The text stays in the site's own log: Flower would carry it to the server verbatim.
        LOG.exception("no answer: %s", code.name)
        return Message(Error(code=code, reason=code.name), reply_to=message)


app = build()
