//! Recorded market data, and the proof that it carries: within a symbol each depth update names the one before it
//! (`pu`), and trade numbers (`t`) rise by one, so that anything lost, doubled or out of order shows.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

/// The project's own sample.
pub fn sample_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/market-sample.log.gz")
}

/// The large recording, where there is one.
pub fn recording() -> Option<PathBuf> {
    let data = std::env::var_os("CHRONFS_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"), PathBuf::from);
    let file = data.join("market/binance-usdm-btcusdt-ethusdt-20240808.log.gz");
    file.exists().then_some(file)
}

/// The lines of a recording: time in ns since the epoch, and message.
pub fn load(file: &Path) -> Vec<(u64, Vec<u8>)> {
    let input = BufReader::new(MultiGzDecoder::new(File::open(file).unwrap()));
    let split = |line: Vec<u8>| {
        let blank = line.iter().position(|&b| b == b' ').unwrap();
        (std::str::from_utf8(&line[..blank]).unwrap().parse().unwrap(), line[blank + 1..].to_vec())
    };
    input.split(b'\n').map(|line| split(line.unwrap())).collect()
}

/// Counts the links that were checked: depth updates and trades that follow another one.
pub fn check_links<'a>(messages: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut newest: HashMap<(String, String), u64> = HashMap::new();
    let mut checked = 0;
    for message in messages {
        let json: serde_json::Value = serde_json::from_slice(message).unwrap();
        let data = &json["data"];
        let (Some(kind), Some(symbol)) = (data["e"].as_str(), data["s"].as_str()) else { continue };
        let (number, previous) = match kind {
            "depthUpdate" => (data["u"].as_u64().unwrap(), data["pu"].as_u64().unwrap()),
            "trade" => (data["t"].as_u64().unwrap(), data["t"].as_u64().unwrap() - 1),
            _ => continue,
        };
        if let Some(last) = newest.insert((kind.to_owned(), symbol.to_owned()), number) {
            assert_eq!(last, previous, "{kind} {symbol}");
            checked += 1;
        }
    }
    checked
}
