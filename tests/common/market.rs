//! Recorded market data and its built-in proof: within a symbol each depth update names the one before it
//! (`pu`), and trade numbers (`t`) rise by one, so that anything lost, doubled or out of order shows.
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Serialize};

/// The project's own sample.
pub fn sample_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/market-sample.log.gz")
}

/// The large recording, if there is one.
pub fn recording() -> Option<PathBuf> {
    let data = std::env::var_os("CHRONFS_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"), PathBuf::from);
    let file = data.join("market/binance-usdm-btcusdt-ethusdt-20240808.log.gz");
    file.exists().then_some(file)
}

/// Reports that the calling test is skipped; `CHRONFS_REQUIRE` does not forbid it: the recording is too large to ship.
#[track_caller]
pub fn say_there_is_no_recording() {
    super::need::skip("there is no recording; CHRONFS_DATA names a directory with market/");
}

/// The lines of a recording: time in ns since the epoch, and message.
pub fn load(file: &Path) -> Vec<(u64, Vec<u8>)> {
    parse(MultiGzDecoder::new(File::open(file).unwrap()))
}

/// The lines of an unpacked recording.
pub fn parse(input: impl Read) -> Vec<(u64, Vec<u8>)> {
    let split = |line: Vec<u8>| {
        let blank = line.iter().position(|&b| b == b' ').unwrap();
        (std::str::from_utf8(&line[..blank]).unwrap().parse().unwrap(), line[blank + 1..].to_vec())
    };
    BufReader::new(input).split(b'\n').map(|line| split(line.unwrap())).collect()
}

/// Follows the links from message to message.
#[derive(Default, Serialize, Deserialize)]
pub struct Links {
    /// Of each kind and symbol, the newest number.
    newest: HashMap<String, u64>,
    /// How many links were checked: depth updates and trades that follow another one.
    pub checked: u64,
}

impl Links {
    pub fn see(&mut self, message: &[u8]) {
        let json: serde_json::Value = serde_json::from_slice(message).unwrap();
        let data = &json["data"];
        let (Some(kind), Some(symbol)) = (data["e"].as_str(), data["s"].as_str()) else { return };
        let (number, previous) = match kind {
            "depthUpdate" => (data["u"].as_u64().unwrap(), data["pu"].as_u64().unwrap()),
            "trade" => (data["t"].as_u64().unwrap(), data["t"].as_u64().unwrap() - 1),
            _ => return,
        };
        if let Some(last) = self.newest.insert(format!("{kind} {symbol}"), number) {
            assert_eq!(last, previous, "{kind} {symbol}");
            self.checked += 1;
        }
    }
}

/// Follows the links of all these messages; how many there are.
pub fn check_links<'a>(messages: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut links = Links::default();
    messages.for_each(|message| links.see(message));
    links.checked
}
