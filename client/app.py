"""The ClientApp: wiring only. What a site answers is decided in `session`, checked in `egress`."""

import logging
import time
from collections.abc import Callable
from enum import IntEnum

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from client.permits import PermitSource, deployed_permits
from client.session import Session, session_for
from client.site import RandomnessSource, SiteRecords, SiteSource, open_configured_site
from common.errors import ConfedError, ConfigError, DataError, ModelError, RefusedError
from common.randomness import SecureRandomness
from common.textpath import ActivationStore
from common.wire import Identity, Order, pack_answer, pack_evaluation, pack_identity, unpack_order

LOG = logging.getLogger("confed.site")
IN_MEMORY = ActivationStore()
LATEST = 0.9
"""Share of a round's time at which an answer still arrives in time."""


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

    def session(context: Context, order: Order) -> Session:
        return session_for(
            context.run_id,
            str(context.node_id),
            order,
            open_site=lambda: open_site(context),
            store=store,
            permits=permits,
        )

    @app.query()
    def identify(message: Message, context: Context) -> Message:
        return _answered(message, context, lambda: _identity(open_site(context)))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        def body() -> RecordDict:
            order, adapter = unpack_order(message.content)
            if order.last:
                LOG.warning("the server did not admit the last answer: code %d", order.last)
            return pack_answer(session(context, order).train(order, adapter, randomness))

        return _answered(message, context, body)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        def body() -> RecordDict:
            order, adapter = unpack_order(message.content)
            found = session(context, order).evaluate(order, adapter, randomness)
            return pack_evaluation(found)

        return _answered(message, context, body)

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


def _answered(message: Message, context: Context, body: Callable[[], RecordDict]) -> Message:
    arrived = time.monotonic()
    try:
        content: RecordDict | Error = body()
    except Exception as error:
        code = code_of(error)
        # The text stays in the site's own log: Flower would carry it to the server verbatim.
        LOG.exception("no answer: %s", code.name)
        content = Error(code=code, reason=code.name)
    _hold(message, context, arrived)
    # After the wait: the time of the message is public too.
    return Message(content, reply_to=message)


def _hold(message: Message, context: Context, arrived: float) -> None:
    """Wait until the share of the round's time that the site asks for has passed.

    How long training took tells of the batch; an answer, or a refusal, at a fixed time does not.
    """
    share = context.node_config.get("reply-at", 0.0)
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share < 1:
        LOG.error("expected reply-at in [0, 1) in node_config; answering at the end of the round")
        share = LATEST
    left = arrived + share * message.metadata.ttl - time.monotonic()
    if share and left > 0:
        time.sleep(left)


app = build()
