import inspect
import threading
from collections.abc import Callable, Iterator

import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from simulations.grid import FIRST_NODE, SERVER_NODE, InProcessGrid

Made = Callable[..., InProcessGrid]


@pytest.fixture
def make() -> Iterator[Made]:
    grids: list[InProcessGrid] = []

    def made(app: ClientApp, nodes: int = 3, workers: int = 2) -> InProcessGrid:
        grids.append(InProcessGrid(app, nodes=nodes, run_id=42, workers=workers))
        return grids[-1]

    yield made
    for grid in grids:
        grid.close()


def echo() -> ClientApp:
    app = ClientApp()

    @app.query()
    def answer(message: Message, context: Context) -> Message:
        said = {
            "node": context.node_id,
            "run": context.run_id,
            "partition": int(context.node_config["partition-id"]),
            "partitions": int(context.node_config["num-partitions"]),
            "asked": int(message.content["question"]["number"]),
        }
        return Message(RecordDict({"said": ConfigRecord(said)}), reply_to=message)

    return app


def question(node: int, number: int = 0) -> Message:
    content = RecordDict({"question": ConfigRecord({"number": number})})
    return Message(content, dst_node_id=node, message_type=MessageType.QUERY)


def test_it_is_a_grid_with_every_method_of_the_interface(make: Made) -> None:
    grid = make(echo())
    assert isinstance(grid, Grid)
    assert not inspect.isabstract(InProcessGrid)
    for name, method in inspect.getmembers(Grid, inspect.isfunction):
        if name.startswith("_"):
            continue
        wanted = set(inspect.signature(method).parameters)
        assert wanted <= set(inspect.signature(getattr(InProcessGrid, name)).parameters), name


def test_flowers_private_names_are_still_there() -> None:
    """What the grid takes from Flower beyond its public interface; a new release may move it."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 3, 4, 5
    assert (TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id) == (3, 4, 5)
    assert Run.create_empty(run_id=7).run_id == 7


def test_each_node_answers_with_its_own_context(make: Made) -> None:
    grid = make(echo())
    nodes = list(grid.get_node_ids())
    assert nodes == [FIRST_NODE, FIRST_NODE + 1, FIRST_NODE + 2]
    replies = list(grid.send_and_receive([question(n, number=n * 2) for n in nodes]))
    for node, reply in zip(nodes, replies, strict=True):
        said = reply.content["said"]
        assert dict(said) == {
            "node": node,
            "run": 42,
            "partition": node - FIRST_NODE,
            "partitions": 3,
            "asked": node * 2,
        }
        assert reply.metadata.src_node_id == node
        assert reply.metadata.dst_node_id == SERVER_NODE


def test_a_pushed_message_is_answered_once(make: Made) -> None:
    grid = make(echo())
    keys = list(grid.push_messages([question(FIRST_NODE), question(FIRST_NODE + 1)]))
    assert len(set(keys)) == 2
    assert [m.metadata.src_node_id for m in grid.pull_messages(keys[:1])] == [FIRST_NODE]
    assert list(grid.pull_messages(keys[:1])) == []
    assert len(list(grid.pull_messages(keys))) == 1
    assert list(grid.pull_messages(["no such key"])) == []


def test_a_created_message_can_be_sent(make: Made) -> None:
    grid = make(echo())
    content = RecordDict({"question": ConfigRecord({"number": 5})})
    message = grid.create_message(content, MessageType.QUERY, FIRST_NODE, "1", ttl=30.0)
    (reply,) = grid.send_and_receive([message])
    assert reply.content["said"]["asked"] == 5
    assert message.metadata.ttl == 30.0


def test_an_app_that_raises_is_a_failed_node_and_the_others_answer(make: Made) -> None:
    app = ClientApp()

    @app.query()
    def answer(message: Message, context: Context) -> Message:
        if context.node_id == FIRST_NODE + 1:
            raise ValueError("patient 4711")
        return Message(RecordDict(), reply_to=message)

    grid = make(app)
    replies = list(grid.send_and_receive([question(n) for n in grid.get_node_ids()]))
    assert [r.has_error() for r in replies] == [False, True, False]
    assert "4711" not in repr(replies[1])
    assert "4711" not in str(replies[1].error.reason)


def test_a_message_of_a_kind_that_the_app_does_not_know_is_a_failed_node(make: Made) -> None:
    grid = make(echo())
    message = Message(RecordDict(), dst_node_id=FIRST_NODE, message_type=MessageType.TRAIN)
    (reply,) = grid.send_and_receive([message])
    assert reply.has_error()


def test_nodes_run_at_the_same_time_up_to_the_number_of_workers(make: Made) -> None:
    app, both = ClientApp(), threading.Barrier(2, timeout=10)

    @app.query()
    def answer(message: Message, context: Context) -> Message:
        both.wait()
        return Message(RecordDict(), reply_to=message)

    grid = make(app, nodes=2, workers=2)
    replies = list(grid.send_and_receive([question(n) for n in grid.get_node_ids()]))
    assert not any(reply.has_error() for reply in replies)


def test_answers_come_in_the_order_of_the_questions(make: Made) -> None:
    app, second = ClientApp(), threading.Event()

    @app.query()
    def answer(message: Message, context: Context) -> Message:
        if context.node_id == FIRST_NODE:
            assert second.wait(timeout=10)
        second.set()
        return Message(RecordDict(), reply_to=message)

    grid = make(app, nodes=2, workers=2)
    replies = grid.send_and_receive([question(n) for n in grid.get_node_ids()])
    assert [r.metadata.src_node_id for r in replies] == [FIRST_NODE, FIRST_NODE + 1]


def test_the_run_is_the_one_that_was_set(make: Made) -> None:
    grid = make(echo())
    assert grid.run.run_id == 42
    grid.set_run(Run.create_empty(run_id=9))
    assert grid.run.run_id == 9
