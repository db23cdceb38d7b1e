//! Relays chronfs queues to other engines, and archives them.
