//! The relay beside real servers: nothing lost, nothing twice, in order, whatever fails.
//!
//! Tests of `nats` and `redis` modules are the same for both kinds of servers ([`broker`]).
//! The tests start the servers themselves, on loopback or in network namespaces. They mostly wait, so that more of them
//! than there are processors can run at once. `CHRONFS_RELAY_SOAK=3600` is the long form: random faults for so many
//! seconds, 20 promotions and 20 partitions, the relay killed at every system call:
//!
//! ```text
//! cargo test -p chronfs-bridge --test relay -- --test-threads 6
//! CHRONFS_RELAY_SOAK=3600 cargo test -p chronfs-bridge --test relay -- --nocapture --test-threads 8
//! ```
#![allow(clippy::unwrap_used, clippy::panic, unexpected_cfgs, unreachable_pub)]

/// Makes tests of functions that take servers, one for each kind.
macro_rules! with_each_broker {
    ($($name:ident: $setup:expr,)+) => {
        mod nats {
            $(#[test]
            fn $name() {
                use crate::broker::{Broker as _, Setup::*};
                if let Some(servers) = crate::cluster::Cluster::with(&$setup) {
                    super::$name(servers);
                }
            })+
        }

        mod redis {
            $(#[test]
            fn $name() {
                use crate::broker::{Broker as _, Setup::*};
                if let Some(servers) = crate::redis_server::Redis::with(&$setup) {
                    super::$name(servers);
                }
            })+
        }
    };
}

mod access;
mod broker;
mod bus;
mod case;
mod cluster;
#[path = "../../../../tests/common/mod.rs"]
mod common;
mod faults;
mod net;
mod page;
#[path = "../../../../tests/common/pages.rs"]
mod pages;
mod partition;
mod power;
mod redis;
mod redis_server;
mod relay;
#[path = "../service/mod.rs"]
mod service;
mod takeover;
mod targets;
