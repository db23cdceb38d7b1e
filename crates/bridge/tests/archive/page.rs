//! The commands of docs/archive.md, as they stand there, beside a real S3 server.
use std::path::Path;

use crate::common::need::{Need, built, require};
use crate::pages::{self, Scratch, blocks};
use crate::s3::{self, Server};
use crate::shelf::{Archive, several};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

#[test]
fn the_page_does_what_it_says() {
    if !s3::is_there() || !require(Need::Built("chron-cli")) || !require(Need::Mount) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut servers = Vec::new();
    let run = pages::run(&blocks(Path::new(ROOT), "docs/archive.md"), |block| {
        let log = dir.path().join(format!("{}.log", servers.len()));
        let server = Server::start(&log);
        let mut scratch = Scratch::new(&[Path::new(env!("CARGO_BIN_EXE_chron-archive")), &built("chron-cli")]);
        scratch.means(" /mnt/", &format!(" {}/", scratch.at("mnt").display()));
        for (name, value) in server.variables() {
            scratch.export(name, &value);
        }
        let queue = scratch.at("srv/bus/feeds/ticks");
        several(&queue);
        if block.text().contains("chron-archive mount") {
            let archive = server.archive(&scratch.at("s3.env"));
            Archive { url: "s3://bucket/ticks".to_owned(), ..archive }.archive(&queue);
        }
        servers.push(server);
        scratch
    });
    assert_eq!(run, 2);
}
