"""An in-process Flower Grid: the production interface over plain function calls.

Nodes are ClientApp calls in a small pool of threads, so one backbone in memory serves all sites.
"""

import itertools
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

FIRST_NODE = 1000
"""Node ids count from here; the server's own is SERVER_NODE."""
SERVER_NODE = 1


class InProcessGrid(Grid):
    """Calls a ClientApp for each message.

    Args:
        client_app: the same app that a SuperNode runs.
        nodes: number of partitions; node i has id FIRST_NODE + i.
        run_id: identifies the run to the app.
        workers: threads that run sites at the same time.
    """

    def __init__(self, client_app: ClientApp, *, nodes: int, run_id: int, workers: int) -> None:
        # Flower stamps a new message with the process's task; one process is one task here.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SERVER_NODE
        self._app = client_app
        self._contexts = {
            FIRST_NODE + i: Context(
                run_id=run_id,
                node_id=FIRST_NODE + i,
                node_config={"partition-id": i, "num-partitions": nodes},
                state=RecordDict(),
                run_config={},
            )
            for i in range(nodes)
        }
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="site")
        self._numbers = itertools.count(1)
        self._waiting: dict[str, Message] = {}
        self._running: dict[Future[Message], str] = {}
        self._ahead = 2 * workers
        self._run = Run.create_empty(run_id=run_id)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def set_run(self, run: Run) -> None:
        """As Grid."""
        self._run = run

    @property
    def run(self) -> Run:
        """As Grid."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """As Grid."""
        return Message(
            content=content,
            message_type=message_type,
            dst_node_id=dst_node_id,
            group_id=group_id,
            ttl=ttl,
        )

    def get_node_ids(self) -> Iterable[int]:
        """Ids of all nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take orders; nodes run when their replies are pulled."""
        keys = []
        for message in messages:
            keys.append(f"{next(self._numbers)}")
            # As Flower's own grid: the reply names the message that it answers.
            message.metadata.__dict__["_message_id"] = keys[-1]
            self._waiting[keys[-1]] = message
        return keys

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The next replies to pushed messages, each given once.

        Only a few nodes run ahead of what is pulled, so that no more than their replies are held.
        """
        wanted = set(message_ids)
        for key in [k for k in self._waiting if k in wanted]:
            if len(self._running) >= self._ahead:
                break
            self._running[self._pool.submit(self._call, self._waiting.pop(key))] = key
        mine = [future for future, key in self._running.items() if key in wanted]
        done = wait(mine, return_when=FIRST_COMPLETED).done if mine else set()
        ready = sorted(done, key=lambda future: int(self._running[future]))
        for future in ready:
            del self._running[future]
        return [future.result() for future in ready]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Run the nodes; a call cannot be cut short, so `timeout` does not apply."""
        pending, replies = set(self.push_messages(messages)), []
        while pending:
            for reply in self.pull_messages(pending):
                pending.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return sorted(replies, key=lambda reply: int(reply.metadata.reply_to_message_id))

    def _call(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        try:
            return self._app(message, self._contexts[node])
        except Exception as error:  # an app that raises is a node that fails, as in deployment
            reason = type(error).__name__
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
