//! `include/chronfs.h` is what cbindgen makes of the source. With CHRONFS_WRITE_HEADER set it is written.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;

#[test]
fn the_header_is_that_of_the_source() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let made = cbindgen::Builder::new().with_crate(root).with_config(config).generate().unwrap();
    let mut text = Vec::new();
    made.write(&mut text);
    let text = String::from_utf8(text).unwrap();

    let path = root.join("include/chronfs.h");
    if std::env::var_os("CHRONFS_WRITE_HEADER").is_some() {
        fs::write(&path, text).unwrap();
    } else if fs::read_to_string(&path).unwrap() != text {
        panic!("{}: not that of the source; run this test with CHRONFS_WRITE_HEADER=1", path.display());
    }
}
