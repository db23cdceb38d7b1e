//! chron-export: every message in one file, no file twice, no half file, whatever happens.
#![allow(clippy::unwrap_used, clippy::panic, dead_code, unreachable_pub)]

#[path = "../../../tests/common/need.rs"]
mod need;
#[path = "../../decode/tests/common/ticker.rs"]
mod ticker;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use arrow_array::cast::AsArray as _;
use arrow_array::types::{TimestampNanosecondType, UInt16Type, UInt64Type};
use arrow_array::{Array as _, RecordBatch};
use chronfs::Queue;
use chronfs::queue::{Entry, Settings};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use need::{Need, require};

const PROGRAM: &str = env!("CARGO_BIN_EXE_chron-export");
/// 2024-08-08T23:59:59Z
const LATE: u64 = 1_723_161_599_000_000_000;
const SCHEMA: &str = r#"
[[message]]
type = 1
name = "quote"
format = "fixed"
time = "at"
fields = [{ name = "at", type = "u64" }, { name = "bid", type = "i64", scale = 2 }]

[[message]]
type = 2
name = "note"
format = "json"
"#;

/// A queue and a directory for its export.
struct Setup {
    dir: tempfile::TempDir,
    queue: Queue,
}

impl Setup {
    /// With small segments.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { segment_size: 64 << 10, ..Settings::DEFAULT };
        let queue = Queue::create(dir.path().join("bus/ticks"), &settings).unwrap();
        Self { dir, queue }
    }

    /// Appends messages, a millisecond apart from `LATE` on.
    fn append(&self, count: u64, payload: impl Fn(u64) -> (u16, Vec<u8>)) {
        self.append_every(1_000_000, count, payload);
    }

    fn append_every(&self, step_ns: u64, count: u64, payload: impl Fn(u64) -> (u16, Vec<u8>)) {
        let mut writer = self.queue.writer().unwrap();
        for _ in 0..count {
            let seq = writer.next_seq();
            let (msg_type, payload) = payload(seq);
            writer.append_at(LATE + seq * step_ns, msg_type, &payload).unwrap();
        }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn run(&self, args: &[&str]) -> Output {
        run(&self.dir.path().join("bus/ticks"), &self.out(), args)
    }

    /// The paths that are printed.
    fn ok(&self, args: &[&str]) -> Vec<PathBuf> {
        let output = self.run(args);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().lines().map(PathBuf::from).collect()
    }

    /// The number of the first message that is not in a sealed segment.
    fn first_unsealed(&self) -> u64 {
        self.queue.inspect().unwrap().segments.iter().find(|segment| !segment.sealed).unwrap().first_seq
    }

    fn files(&self) -> Vec<PathBuf> {
        files(&self.out())
    }
}

fn run(from: &Path, to: &Path, args: &[&str]) -> Output {
    Command::new(PROGRAM).arg(from).arg(to).args(args).output().unwrap()
}

/// All files below a directory, hidden ones too, sorted.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn parquet(path: &Path) -> Vec<RecordBatch> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap());
    let builder = builder.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    builder.build().unwrap().map(|batch| batch.unwrap_or_else(|error| panic!("{}: {error}", path.display()))).collect()
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

/// What all Parquet files hold, by sequence number: the type, and the payload if it is there.
fn messages(files: &[PathBuf]) -> BTreeMap<u64, (u16, Option<Vec<u8>>)> {
    let mut found = BTreeMap::new();
    for path in files {
        for batch in parquet(path) {
            let seqs = batch.column_by_name("seq").unwrap().as_primitive::<UInt64Type>();
            let types = batch.column_by_name("type").unwrap().as_primitive::<UInt16Type>();
            let payloads = batch.column_by_name("payload").unwrap().as_binary::<i32>();
            assert!(seqs.values().is_sorted());
            for ((seq, msg_type), payload) in seqs.values().iter().zip(types.values()).zip(payloads) {
                let before = found.insert(*seq, (*msg_type, payload.map(<[u8]>::to_vec)));
                assert_eq!(before, None, "{seq} is in two files");
            }
        }
    }
    found
}

fn text(seq: u64) -> (u16, Vec<u8>) {
    (u16::try_from(seq % 3).unwrap(), format!("message {seq} {}", "x".repeat(100)).into_bytes())
}

fn expected(range: std::ops::Range<u64>) -> BTreeMap<u64, (u16, Option<Vec<u8>>)> {
    range.map(|seq| (seq, (text(seq).0, Some(text(seq).1)))).collect()
}

#[test]
fn sealed_segments_are_exported_once_and_the_rest_when_asked_for() {
    let setup = Setup::new();
    setup.append(2000, text);
    assert!(setup.queue.inspect().unwrap().segments.len() > 3);
    let first = setup.ok(&[]);
    assert_eq!(first.len(), 2, "small segments share a file");
    let unsealed = setup.first_unsealed();
    assert_eq!(messages(&setup.files()), expected(1..unsealed));
    assert_eq!(setup.files().len(), first.len());
    let inodes = |files: &[PathBuf]| files.iter().map(|file| file.metadata().unwrap().ino()).collect::<Vec<_>>();
    let before = (setup.files(), inodes(&setup.files()));
    let again = setup.run(&[]);
    let left = format!("0 messages in 0 new files; {} in the segment that is being written", 2001 - unsealed);
    assert!(again.status.success() && again.stdout.is_empty(), "{again:?}");
    assert!(String::from_utf8_lossy(&again.stderr).contains(&left), "{again:?}");
    assert_eq!((setup.files(), inodes(&setup.files())), before);
    // The dates are those of UTC.
    let dates: Vec<_> = first.iter().map(|path| name(path.parent().unwrap()).to_owned()).collect();
    assert!(dates.contains(&"date=2024-08-08".to_owned()) && dates.contains(&"date=2024-08-09".to_owned()));
    assert!(first.iter().all(|path| path.starts_with(setup.out().join("queue=ticks"))));

    assert_eq!(setup.ok(&["--unsealed"]).len(), 1);
    assert_eq!(messages(&setup.files()), expected(1..2001));
    setup.append(2000, text);
    assert!(!setup.ok(&[]).is_empty());
    setup.ok(&["--unsealed"]);
    assert_eq!(messages(&setup.files()), expected(1..4001));
    assert_eq!(setup.ok(&["--unsealed"]), Vec::<PathBuf>::new());
}

#[test]
fn many_small_segments_become_few_files() {
    let setup = Setup::new();
    let mut writer = setup.queue.writer().unwrap();
    for _ in 0..300_000 {
        writer.append_at(LATE, 0, b"").unwrap();
    }
    drop(writer);
    let segments = setup.queue.inspect().unwrap().segments;
    let files = setup.ok(&["--unsealed"]);
    let rows: Vec<usize> = files.iter().map(|file| parquet(file).iter().map(RecordBatch::num_rows).sum()).collect();
    // Each ends with the segment that makes it enough.
    let is_end = |seq: usize| segments.iter().any(|segment| segment.last_seq == seq as u64);
    assert!(segments.len() > 50 && rows.len() == 3 && rows.iter().sum::<usize>() == 300_000, "{rows:?}");
    assert!((131_072..140_000).contains(&rows[0]) && is_end(rows[0]) && is_end(rows[0] + rows[1]), "{rows:?}");
}

#[test]
fn times_select_and_a_later_run_adds_what_is_missing() {
    let setup = Setup::new();
    setup.append(2000, text);
    let since = format!("@{}", LATE / 1_000_000_000);
    // From the 500th millisecond to the 1200th, both inclusive.
    let args =
        ["--since", &format!("{since}.500"), "--until", &format!("@{}.2", LATE / 1_000_000_000 + 1), "--unsealed"];
    setup.ok(&args);
    assert_eq!(messages(&setup.files()), expected(500..1201));
    assert_eq!(setup.ok(&args), Vec::<PathBuf>::new());
    setup.ok(&["--unsealed"]);
    assert_eq!(messages(&setup.files()), expected(1..2001));
}

#[test]
fn what_is_missing_is_reported_and_the_rest_exported() {
    let setup = Setup::new();
    setup.append(2000, text);
    let segments = setup.queue.inspect().unwrap().segments;
    // A segment is lost, and a bit flips in another one.
    let (lost, damaged) = (&segments[1], &segments[2]);
    let path = |id: u32| setup.queue.path().join(format!("{id:09}.q"));
    fs::remove_file(path(lost.id.0)).unwrap();
    let mut bytes = fs::read(path(damaged.id.0)).unwrap();
    let at = bytes.windows(9).position(|window| window == b"message 1").unwrap();
    bytes[at] ^= 1;
    fs::write(path(damaged.id.0), bytes).unwrap();

    let output = setup.run(&["--unsealed"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let missing = format!("messages {} to {} are missing: segment", lost.first_seq, lost.last_seq);
    assert!(stderr.contains(&missing) && stderr.contains("are missing: checksum"), "{stderr}");
    let found = messages(&setup.files());
    let gone: Vec<u64> = (1..2001).filter(|seq| !found.contains_key(seq)).collect();
    assert_eq!(gone.len() as u64, lost.last_seq - lost.first_seq + 2);
    assert!(found.iter().all(|(seq, (_, payload))| payload.as_ref() == Some(&text(*seq).1)));
    // Nothing twice; what no file holds is reported again.
    let again = setup.run(&["--unsealed"]);
    assert_eq!((again.status.code(), again.stdout.len()), (Some(1), 0));
    assert!(String::from_utf8(again.stderr).unwrap().contains(&missing));
}

/// Quotes, notes, quotes that are too short, and types that the schema does not know.
fn mixed(seq: u64) -> (u16, Vec<u8>) {
    let quote = [(LATE + seq).to_le_bytes(), (100 + seq).to_le_bytes()].concat();
    match seq % 4 {
        0 => (2, format!("{{\"n\": {seq}}}").into_bytes()),
        1 => (1, quote),
        2 => (1, b"short".to_vec()),
        _ => (7, b"\xffbytes".to_vec()),
    }
}

#[test]
fn decoded_messages_are_columns_of_a_table_of_their_kind() {
    let setup = Setup::new();
    setup.append(900, mixed);
    let schema = setup.dir.path().join("other.toml");
    fs::write(&schema, SCHEMA).unwrap();
    setup.ok(&["--unsealed", "--schema", schema.to_str().unwrap()]);
    let (mut rows, mut tables) = (0, BTreeMap::<_, u64>::new());
    for path in setup.files() {
        let table = name(&path).split('-').next().unwrap().to_owned();
        for batch in parquet(&path) {
            rows += batch.num_rows();
            *tables.entry(table.clone()).or_default() += batch.num_rows() as u64;
            let seqs = batch.column_by_name("seq").unwrap().as_primitive::<UInt64Type>().clone();
            for (row, seq) in seqs.values().iter().enumerate() {
                let text = |name: &str| {
                    let column = batch.column_by_name(name).unwrap().as_string::<i32>();
                    column.is_valid(row).then(|| column.value(row).to_owned())
                };
                let payload = batch.column_by_name("payload").unwrap().as_binary::<i32>();
                let keeps = payload.is_valid(row).then(|| payload.value(row).to_vec());
                match seq % 4 {
                    0 => assert_eq!((text("decoded"), keeps), (Some(format!("{{\"n\": {seq}}}")), None)),
                    3 => assert_eq!((text("undecoded"), keeps), (None, Some(mixed(3).1))),
                    2 => {
                        assert_eq!(text("undecoded").unwrap(), "the layout has 16 bytes, the payload 5");
                        assert!(batch.column_by_name("at").unwrap().is_null(row) && keeps == Some(b"short".to_vec()));
                    }
                    _ => {
                        let time = batch.column_by_name("exchange_time").unwrap();
                        let time = time.as_primitive::<TimestampNanosecondType>();
                        assert_eq!((time.value(row).unsigned_abs(), keeps), (LATE + seq, None));
                    }
                }
            }
        }
    }
    assert_eq!(rows, 900);
    let expected = [("messages", 225), ("note", 225), ("quote", 450)];
    assert_eq!(tables, expected.map(|(table, rows)| (table.to_owned(), rows)).into());
}

#[test]
fn lines_are_those_of_tail_and_csv_has_a_header() {
    let setup = Setup::new();
    setup.append(50, mixed);
    fs::write(setup.queue.path().join("schema.toml"), SCHEMA).unwrap();
    let unpacked = |path: &Path| zstd::decode_all(File::open(path).unwrap()).unwrap();
    let jsonl = setup.ok(&["--unsealed", "--format", "jsonl"]);
    let schema = chronfs_decode::Schema::load(setup.queue.path()).unwrap().unwrap();
    let (mut scanner, mut lines) = (setup.queue.scan().unwrap(), Vec::new());
    while let Some(entry) = scanner.next().unwrap() {
        assert!(matches!(entry, Entry::Message(_)));
        chronfs::view::render_decoded(&entry, None, &mut &schema, &mut lines);
    }
    let files: Vec<u8> = jsonl.iter().flat_map(|path| unpacked(path)).collect();
    assert_eq!(String::from_utf8(files).unwrap(), String::from_utf8(lines).unwrap());

    let csv = setup.ok(&["--unsealed", "--format", "csv"]);
    let of = |table: &str| {
        let path = csv.iter().find(|path| name(path).starts_with(table)).unwrap();
        String::from_utf8(unpacked(path)).unwrap()
    };
    let quotes = of("quote");
    let mut lines = quotes.lines();
    assert_eq!(lines.next(), Some("seq,timestamp,exchange_time,type,at,bid,payload,payload_b64,undecoded"));
    let first = "1,2024-08-08T23:59:59.001Z,2024-08-08T23:59:59.000000001Z,1,1723161599000000001,1.01,,,";
    assert_eq!(lines.next(), Some(first));
    assert!(lines.next().unwrap().ends_with(",1,,,short,,\"the layout has 16 bytes, the payload 5\""));
    assert!(of("messages").contains(",7,,/2J5dGVz,\n"), "{}", of("messages"));
    let arrow = setup.ok(&["--unsealed", "--format", "arrow"]);
    assert_eq!(arrow.len(), 3);
    for path in arrow {
        let reader = arrow_ipc::reader::FileReader::try_new(File::open(&path).unwrap(), None).unwrap();
        assert!(reader.map(|batch| batch.unwrap().num_rows()).sum::<usize>() > 10);
    }
}

#[test]
fn a_bus_is_exported_by_the_names_of_its_queues() {
    let setup = Setup::new();
    setup.append(10, text);
    let other = setup.dir.path().join("bus/feeds/a b");
    let fill = |payload: &[u8]| {
        let queue = Queue::create(&other, &Settings::DEFAULT).unwrap();
        queue.writer().unwrap().append(1, payload).unwrap();
    };
    fill(b"old");
    let export = || {
        let output = run(&setup.dir.path().join("bus"), &setup.out(), &["--unsealed", "--quiet"]);
        assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
        setup
            .files()
            .into_iter()
            .filter(|path| path.to_str().unwrap().contains("queue=feeds%2Fa%20b/"))
            .collect::<Vec<_>>()
    };
    assert_eq!(export().len(), 1);
    // Another queue of the same name, whose messages have the same numbers.
    fs::remove_dir_all(&other).unwrap();
    fill(b"new");
    let files = export();
    assert_eq!(files.len(), 2);
    let payloads: Vec<_> =
        files.iter().map(|file| messages(std::slice::from_ref(file))[&1].1.clone().unwrap()).collect();
    assert!(payloads.contains(&b"old".to_vec()) && payloads.contains(&b"new".to_vec()));
    assert!(setup.files().iter().any(|path| path.starts_with(setup.out().join("queue=ticks"))));
}

#[test]
fn mistakes_are_named() {
    let setup = Setup::new();
    setup.append(1, text);
    let fails = |from: &Path, args: &[&str], code: i32, words: &str| {
        let output = run(from, &setup.out(), args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), stderr.contains(words)), (Some(code), true), "{stderr}");
    };
    let queue = setup.queue.path().to_owned();
    fails(&setup.out(), &[], 1, "out: cannot list: No such file");
    fs::create_dir(setup.out()).unwrap();
    fails(&setup.out(), &[], 1, "out: no queues here");
    fails(&queue, &["--format", "xls"], 2, "invalid value 'xls'");
    fails(&queue, &["--schema", "/none/s.toml"], 1, "/none/s.toml: cannot read it: No such file");
    fs::write(queue.join("schema.toml"), "[[message]]\n").unwrap();
    fails(&queue, &[], 1, "ticks/schema.toml:1: missing field");
    fs::remove_file(queue.join("schema.toml")).unwrap();
    fs::write(setup.out().join("queue=ticks"), "").unwrap();
    fails(&queue, &["--unsealed"], 1, "out/queue=ticks: cannot create it: ");
}

/// Kills the export before each of its system calls that change or read files, in turn.
#[test]
fn a_kill_at_any_system_call_leaves_no_half_file_and_the_next_run_completes_it() {
    if !require(Need::Strace) {
        return;
    }
    let setup = Setup::new();
    // Over midnight: two files of each kind.
    setup.append_every(4_000_000, 420, |seq| {
        (mixed(seq).0, [&mixed(seq).1[..], &[b' '; 150][..if mixed(seq).0 == 2 { 150 } else { 0 }]].concat())
    });
    fs::write(setup.queue.path().join("schema.toml"), SCHEMA).unwrap();
    let whole = {
        setup.ok(&["--unsealed"]);
        let files: Vec<_> = setup.files().iter().map(|path| name(path).to_owned()).collect();
        assert_eq!(files.len(), 6);
        (messages(&setup.files()), files)
    };
    let mut kills = 0;
    for call in ["mkdir", "openat", "flock", "write", "fsync", "rename", "unlink", "close"] {
        for nth in 1.. {
            fs::remove_dir_all(setup.out()).unwrap();
            // What an earlier run has left is tidied up, so that there is something to remove and to complete.
            let date = setup.out().join("queue=ticks/date=2024-08-08");
            fs::create_dir_all(&date).unwrap();
            let id = setup.queue.id();
            fs::write(date.join(format!(".quote-{id:016x}-1.parquet.tmp")), "half").unwrap();
            fs::write(date.join(format!(".quote-{id:016x}-000000000001-000000000002.parquet.ready")), "half").unwrap();
            let killed = Command::new("strace")
                .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e"])
                .arg(format!("inject={call}:signal=KILL:when={nth}"))
                .arg(PROGRAM)
                .args([setup.queue.path(), &setup.out()])
                .args(["--unsealed", "--quiet"])
                .output()
                .unwrap();
            let is_visible = |path: &PathBuf| !name(path).starts_with('.');
            let visible: Vec<_> = setup.files().into_iter().filter(is_visible).collect();
            for (seq, message) in messages(&visible) {
                assert_eq!(whole.0.get(&seq), Some(&message), "{call} {nth}");
            }
            setup.ok(&["--unsealed"]);
            let files: Vec<_> = setup.files().iter().map(|path| name(path).to_owned()).collect();
            assert_eq!((&files, &messages(&setup.files())), (&whole.1, &whole.0), "{call} {nth}");
            if killed.status.success() {
                break;
            }
            kills += 1;
        }
    }
    assert!(kills > 60, "{kills}");
}

#[test]
fn recorded_market_data_is_exported_from_every_format() {
    let setup = Setup::new();
    let recordings = ticker::recordings();
    let tickers = ticker::recorded(recordings.last().unwrap(), 5_000);
    let mut writer = setup.queue.writer().unwrap();
    for recorded in &tickers {
        let ticker = &recorded.ticker;
        for (msg_type, payload) in
            [(1, ticker.fixed()), (2, ticker.sbe()), (3, ticker.protobuf()), (4, recorded.json.clone())]
        {
            writer.append_at(recorded.timestamp_ns, msg_type, &payload).unwrap();
        }
    }
    drop(writer);
    for (file, text) in [("schema.toml", ticker::SCHEMA), ("ticker.xml", ticker::XML), ("ticker.proto", ticker::PROTO)]
    {
        File::create(setup.queue.path().join(file)).unwrap().write_all(text.as_bytes()).unwrap();
    }
    setup.ok(&["--unsealed"]);
    let mut columns = BTreeMap::<String, Vec<String>>::new();
    for path in setup.files() {
        let table = name(&path).split('-').next().unwrap();
        for batch in parquet(&path) {
            assert_eq!(batch.column_by_name("undecoded").unwrap().null_count(), batch.num_rows());
            let Some(bids) = batch.column_by_name("bid") else { continue };
            let bids = arrow_array_text(bids);
            columns.entry(table.to_owned()).or_default().extend(bids);
        }
    }
    let bids: Vec<String> = tickers.iter().map(|recorded| recorded.ticker.bid.to_string()).collect();
    assert_eq!(columns.keys().collect::<Vec<_>>(), ["proto_ticker", "sbe_ticker", "ticker"]);
    assert!(columns.values().all(|found| *found == bids));
}

/// Integers and decimals as their digits.
fn arrow_array_text(column: &arrow_array::ArrayRef) -> Vec<String> {
    match column.data_type() {
        arrow_schema::DataType::Int64 => {
            column.as_primitive::<arrow_array::types::Int64Type>().values().iter().map(i64::to_string).collect()
        }
        _ => column.as_primitive::<arrow_array::types::Decimal128Type>().values().iter().map(i128::to_string).collect(),
    }
}
