"""A host as the runbooks know it: units, containers and a journal, around real gatewayd and nats-server processes."""
