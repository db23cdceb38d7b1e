//! What a mount costs beside the same bytes in a plain file.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use chronfs::queue::{Queue, Settings};

use crate::Result;
use crate::plan::Plan;
use crate::report::{Report, Sample};

/// A mounted bus; unmounted when dropped.
pub(crate) struct Mount {
    cli: PathBuf,
    at: PathBuf,
}

impl Mount {
    pub(crate) fn new(cli: &Path, bus: &Path, at: &Path) -> Result<Self> {
        fs::create_dir_all(at)?;
        let status = Command::new(cli).arg("mount").args([bus, at]).stdin(Stdio::null()).stdout(Stdio::null()).status();
        let status = status.map_err(|e| format!("{}: {e}; build it, or name it by --cli", cli.display()))?;
        if !status.success() {
            return Err(format!("{} mount: {status}", cli.display()).into());
        }
        Ok(Self { cli: cli.to_path_buf(), at: at.to_path_buf() })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new(&self.cli).arg("umount").arg(&self.at).stderr(Stdio::null()).status();
    }
}

const CHUNK: usize = 128 << 10;
const PAYLOAD: usize = 256;

/// Reads a file to its end; returns how many bytes.
fn read_all(path: &Path) -> Result<u64> {
    let mut file = File::open(path)?;
    let (mut buffer, mut bytes) = (vec![0; CHUNK], 0);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(bytes),
            read => bytes += read as u64,
        }
    }
}

/// Reads of `messages.*` and segments, and appends, through a mount and without.
pub(crate) fn run(plan: &Plan<'_>, report: &mut Report) -> Result<()> {
    let (dir, _) = plan.scratch.fresh()?;
    let queue = Queue::create(dir.join("bus/queue"), &Settings::default())?;
    let messages: u64 = if plan.quick { 200_000 } else { 2_000_000 };
    let mut writer = queue.writer()?;
    let mut line = vec![b'x'; PAYLOAD];
    for number in 0..messages {
        line[..20].copy_from_slice(format!("{number:020}").as_bytes());
        writer.append(1, &line)?;
    }
    drop(writer);
    // A large one: the first takes hardly longer than opening it.
    let segments = queue.inspect()?.segments;
    let segment = segments.iter().max_by_key(|segment| segment.bytes).ok_or("no segment")?;
    let segment = format!("{:09}.q", segment.id.0);
    let mount = Mount::new(&plan.cli, &dir.join("bus"), &dir.join("mnt"))?;
    let shown = dir.join("mnt/queue");
    for round in (0..plan.rounds).take_while(|&round| plan.has_time(round, "mount")) {
        eprintln!("== mount, round {} of {}", round + 1, plan.rounds);
        for name in ["messages.bin", "messages.jsonl", "messages.txt"] {
            let plain = dir.join(name);
            if round == 0 {
                fs::copy(shown.join(name), &plain)?;
            }
            for (link, path) in [("plain file", &plain), ("mount", &shown.join(name))] {
                // The kernel caches what it has read while a file is open.
                let open = File::open(path)?;
                for test in [format!("read {name}"), format!("read {name} again")] {
                    let start = Instant::now();
                    let bytes = read_all(path)?;
                    record(report, test.leak(), link, PAYLOAD, bytes, start);
                }
                drop(open);
            }
        }
        for (link, path) in
            [("plain file", dir.join("bus/queue").join(&segment)), ("mount", shown.join("segments").join(&segment))]
        {
            let start = Instant::now();
            let bytes = read_all(&path)?;
            record(report, "read a segment", link, PAYLOAD, bytes, start);
        }
        let lines = if plan.quick { 20_000 } else { 100_000 };
        fs::create_dir_all(dir.join("bus").join(format!("new{round}")))?;
        for (link, path) in [
            ("plain file", dir.join(format!("lines{round}"))),
            ("mount", dir.join("mnt").join(format!("new{round}/append.packets"))),
        ] {
            let mut file = File::options().create(link != "mount").append(true).open(path)?;
            let start = Instant::now();
            for _ in 0..lines {
                file.write_all(&line[..64])?;
            }
            record(report, "write a message", link, 64, lines, start);
        }
    }
    drop(mount);
    plan.scratch.fresh().map(drop)
}

fn record(report: &mut Report, test: &'static str, link: &'static str, payload: usize, count: u64, start: Instant) {
    let elapsed_ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    report.add(Sample { test, link, payload, count, elapsed_ns, values: Vec::new(), word_ns: None });
}
