//! The commands of docs/archive.md, as they stand there, beside a real S3 server.
use std::fs;
use std::path::Path;

use crate::common::need::{Need, built, require};
use crate::pages::{Scratch, blocks};
use crate::s3::{self, Server};
use crate::shelf::several;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

#[test]
fn the_page_does_what_it_says() {
    if !s3::is_there() || !require(Need::Built("chron-cli")) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut run = 0;
    for (number, block) in blocks(Path::new(ROOT), "docs/archive.md").iter().enumerate() {
        let at = dir.path().join(number.to_string());
        fs::create_dir(&at).unwrap();
        let mut servers = Vec::new();
        run += usize::from(block.run(|| {
            let server = Server::start(&at.join("log"));
            let mut scratch = Scratch::new(&[Path::new(env!("CARGO_BIN_EXE_chron-archive")), &built("chron-cli")]);
            scratch.means(" /mnt/", &format!(" {}/", scratch.at("mnt").display()));
            for (name, value) in server.variables() {
                scratch.export(name, &value);
            }
            servers.push(server);
            several(&scratch.at("srv/bus/feeds/ticks"));
            scratch
        }));
    }
    assert_eq!(run, 2);
}
