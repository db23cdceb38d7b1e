//! Every command block of the README and the pages is run, and what it prints is compared with what the page shows:
//! `common/pages.rs` says how they are written. The bus that they speak of, `/srv/bus`, has the queues `ticks` and
//! `orders`.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
#[path = "common/pages.rs"]
mod pages;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use common::program;
use pages::{Block, Scratch, blocks, is_as_shown};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Pages about programs of other packages of the workspace, which tests of this one can't expect to be built; and who
/// runs their blocks.
const ELSEWHERE: [(&str, &str); 4] = [
    ("docs/archive.md", "crates/bridge/tests/archive/page.rs"),
    ("docs/c.md", "scripts/c.sh"),
    ("docs/distributed.md", "crates/bridge/tests/relay/page.rs"),
    ("docs/export.md", "crates/export/tests/test_readers.py"),
];
/// The page of what only a build with the feature `decode` can do.
const DECODING: &str = "docs/decode.md";
/// Blocks that nothing runs, with their reasons. One more is a decision.
const NOT_RUN: usize = 6;

/// The README of each directory that has one, and all pages of docs/.
fn pages() -> Vec<String> {
    let mut pages = Vec::new();
    for dir in ["", "docs", "contrib", "examples", "bench-peers", "bindings/python"] {
        for entry in fs::read_dir(Path::new(ROOT).join(dir)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".md") {
                pages.push(Path::new(dir).join(name).to_str().unwrap().to_owned());
            }
        }
    }
    pages.sort();
    pages
}

fn scratch() -> Scratch {
    let scratch = Scratch::new(&[&program()]);
    fs::write(scratch.at("work/lines.txt"), "one\ntwo\n").unwrap();
    let bus = scratch.at("srv/bus");
    for (queue, texts) in [("ticks", ["BTC 61.25", "ETH 2650"]), ("orders", ["buy 100", "sell 50"])] {
        let mut command = Command::new(program());
        command.arg("send").arg(bus.join(queue)).args(texts).stderr(Stdio::null());
        assert!(command.status().unwrap().success());
    }
    chronfs::bus::mark_ready(bus.join("ticks")).unwrap();
    scratch
}

/// Runs the blocks of the pages whose name this is.
fn run(is_page: impl Fn(&str) -> bool) {
    let is_elsewhere =
        |page: &str| ELSEWHERE.iter().any(|(other, _)| page == *other) || !cfg!(feature = "decode") && page == DECODING;
    let pages = pages().into_iter().filter(|page| is_page(page) && !is_elsewhere(page));
    let blocks: Vec<Block> = pages.flat_map(|page| blocks(Path::new(ROOT), &page)).collect();
    println!("{} blocks", pages::run(&blocks, |_| scratch()));
}

#[test]
fn the_readme_does_what_it_says() {
    run(|page| page == "README.md");
}

#[test]
fn the_pages_do_what_they_say() {
    run(|page| page != "README.md");
}

#[test]
fn blocks_that_nobody_runs_are_counted() {
    let pages = pages();
    for (page, test) in ELSEWHERE {
        assert!(pages.iter().any(|there| there == page), "{page} is gone");
        let test = fs::read_to_string(Path::new(ROOT).join(test)).unwrap();
        assert!(test.contains(page), "its test does not name {page}");
    }
    let blocks: Vec<Block> = pages.iter().flat_map(|page| blocks(Path::new(ROOT), page)).collect();
    let typed = blocks.iter().filter(|block| block.is_typed());
    let not_run: Vec<_> = typed.filter_map(|block| Some((block.place(), block.reason()?))).collect();
    assert_eq!(not_run.len(), NOT_RUN, "{not_run:#?}");
}

#[test]
fn the_readme_is_short() {
    let lines = fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap().lines().count();
    assert!(lines <= 150, "{lines} lines: move details to docs/");
}

/// Links of pages to other pages, and to headings in them.
#[test]
fn links_lead_somewhere() {
    let anchor = |heading: &str| {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>().replace(' ', "-")
    };
    for page in pages().iter().map(|page| Path::new(ROOT).join(page)) {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.contains("://") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link}", page.display());
            if !heading.is_empty() {
                let other = fs::read_to_string(&target).unwrap();
                let has = other.lines().filter(|line| line.starts_with('#')).any(|line| anchor(line) == heading);
                assert!(has, "{}: no heading for {link}", page.display());
            }
        }
    }
}

#[test]
fn numbers_may_differ_and_words_may_not() {
    let shown = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    assert!(is_as_shown(&shown("seq 1 at 12:30\n...\nend"), "seq 17 at 9:05\na\nb\nend\n"));
    assert!(is_as_shown(&shown("...\nend"), "end"));
    assert!(!is_as_shown(&shown("seq 1"), "seq\n"));
    assert!(!is_as_shown(&shown("one"), "one\ntwo\n"));
}
