//! chron-relay: a queue to a NATS JetStream stream, and back.

fn main() {}
