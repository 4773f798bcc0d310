"""Objects that trials share through Ray's object store."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

NAMESPACE = "delta_tune"


def driver_actor_options() -> dict[str, Any]:
    """Options that pin an actor to the driver's node, so it lives as long as this process."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()  # with soft affinity Ray may put an actor without CPUs anywhere
    return {
        "num_cpus": 0,
        "namespace": NAMESPACE,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id=node, soft=False),
    }


class _ObjectHolder:
    """Holds a reference to one object so that trials find it by name.

    A reference in the trainable's closure would stay pinned in the store until the driver ends.
    """

    def __init__(self, boxed: list[Any]) -> None:
        self._boxed = boxed
        self._words: list[str] = []

    def get(self) -> list[Any]:
        """The reference in a list; Ray would resolve a bare one here."""
        return self._boxed

    def leave(self, words: str) -> None:
        """Keep what a worker has to say before it ends."""
        self._words.append(words)

    def words(self) -> list[str]:
        """What workers left, oldest first."""
        return self._words


@contextlib.contextmanager
def put_shared(value: Any, name: str) -> Iterator[None]:
    """Put `value` into the object store; `get_shared(name)` finds it anywhere in the cluster while the block runs."""
    import ray

    reference = ray.put(value)
    holder = ray.remote(_ObjectHolder).options(name=name, **driver_actor_options()).remote([reference])
    try:
        ray.get(holder.get.remote())  # fails here if the name is taken or the cluster has no room
        yield
    finally:
        ray.kill(holder)
        del reference


def get_shared(name: str) -> Any:
    """The object that `put_shared` stored under `name`; its arrays are read-only views into the node's store."""
    import ray

    (reference,) = ray.get(ray.get_actor(name, namespace=NAMESPACE).get.remote())
    return ray.get(reference)


def leave_words(name: str, words: str) -> None:
    """Leave words beside the object `name`, for the process that stored it."""
    import ray

    ray.get(ray.get_actor(name, namespace=NAMESPACE).leave.remote(words))


def left_words(name: str) -> list[str]:
    """What was left beside the object `name`, oldest first."""
    import ray

    words: list[str] = ray.get(ray.get_actor(name, namespace=NAMESPACE).words.remote())
    return words
