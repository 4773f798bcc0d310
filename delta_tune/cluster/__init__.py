"""The Ray cluster: connection, nodes, resources, shared objects, failures."""
