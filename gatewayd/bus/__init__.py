"""NATS JetStream: the publish lane, the client's life, what the stream should be."""
