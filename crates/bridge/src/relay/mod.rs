//! Relays a queue to a NATS JetStream stream, and a stream to a queue.
