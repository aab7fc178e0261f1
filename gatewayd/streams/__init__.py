"""Redis Streams, followed from concrete ids: session snapshots and client events."""
