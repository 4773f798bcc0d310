"""Objects that trials share through Ray's object store."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

NAMESPACE = "delta_tune"


def driver_actor_options() -> dict[str, Any]:
    """Options of an actor that is to live as long as this process: any other node may be lost before."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()  # soft affinity puts actors without CPUs anywhere
    return {
        "num_cpus": 0,
        "namespace": NAMESPACE,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id=node, soft=False),
    }


class _ObjectHolder:
    """An actor that holds a reference to one object, so that trials find it by name.

    A reference in the trainable's closure would be pinned in the store until the driver ends.
    """

    def __init__(self, boxed: list[Any]) -> None:
        self._boxed = boxed

    def get(self) -> list[Any]:
        """The reference, boxed: Ray would otherwise resolve it here."""
        return self._boxed


@contextlib.contextmanager
def put_shared(value: Any, name: str) -> Iterator[None]:
    """Put an object into the store once, found by `get_shared(name)` anywhere in the cluster; gone afterwards."""
    import ray

    reference = ray.put(value)
    shelf = ray.remote(_ObjectHolder).options(name=name, **driver_actor_options()).remote([reference])
    try:
        ray.get(shelf.get.remote())  # a name that is taken, or a cluster without room, shows here
        yield
    finally:
        ray.kill(shelf)
        del reference


def get_shared(name: str) -> Any:
    """The object of that name; its arrays are read-only views into the node's store."""
    import ray

    (reference,) = ray.get(ray.get_actor(name, namespace=NAMESPACE).get.remote())
    return ray.get(reference)
