//! What was measured, as JSON and as tables.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::Result;
use crate::scratch::Scratch;

/// One round of one measurement.
pub(crate) struct Sample {
    pub(crate) test: &'static str,
    pub(crate) link: &'static str,
    pub(crate) payload: usize,
    pub(crate) count: u64,
    /// Of all of them; 0 if only `values` count.
    pub(crate) elapsed_ns: u64,
    /// Nanoseconds and how often.
    pub(crate) values: Vec<(u64, u64)>,
    /// What the bare word took just before and after it.
    pub(crate) word_ns: Option<u64>,
}

/// The percentiles that are kept.
pub(crate) const QUANTILES: [(f64, &str); 6] =
    [(0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9"), (0.9999, "p99.99"), (1.0, "max")];

#[derive(Serialize, Default)]
pub(crate) struct Rounds {
    /// Nanoseconds per message, of each round.
    pub(crate) ns: Vec<f64>,
    /// Quantiles of each round, in nanoseconds, as in `QUANTILES`.
    pub(crate) quantiles: Vec<Vec<u64>>,
    /// What the bare word took beside each round, in nanoseconds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) word_ns: Vec<u64>,
    /// All rounds together: nanoseconds and how often. For the plots.
    #[serde(skip)]
    pub(crate) values: BTreeMap<u64, u64>,
}

#[derive(Serialize)]
pub(crate) struct Report {
    date: String,
    command: String,
    machine: String,
    commit: String,
    /// By test, payload and link.
    #[serde(serialize_with = "as_list")]
    pub(crate) results: BTreeMap<(&'static str, usize, &'static str), Rounds>,
    /// Tables of other measurements: title, explanation, rows with the head first.
    pub(crate) tables: Vec<(String, String, Vec<Vec<String>>)>,
    /// Measurements that were dropped, because the word took another time after them than before.
    pub(crate) dropped: usize,
    /// By how much other work held up this program, in hundredths of the time.
    busy_percent: f64,
    /// What could not be measured, and why.
    failures: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Listed<'a> {
    test: &'a str,
    payload: usize,
    link: &'a str,
    #[serde(flatten)]
    rounds: &'a Rounds,
}

fn as_list<S: serde::Serializer>(
    results: &BTreeMap<(&'static str, usize, &'static str), Rounds>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_seq(results.iter().map(|(&(test, payload, link), rounds)| Listed {
        test,
        payload,
        link,
        rounds,
    }))
}

/// The first line that a command prints.
fn first_line(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).lines().next().unwrap_or("?").trim().to_owned()
}

/// What each link is, in the order in which they are shown.
const LINKS: [(&str, &str); 16] = [
    ("word", "floor: one store of a word that another process reads, whatever the payload; for a wake, a bare futex"),
    ("copied", "floor: the same bytes copied into populated memory, then a store; no checksum, no time, not persisted"),
    (
        "copied, checked",
        "the same with a checksum (the crc-fast crate) and a reading of the clock (quanta), verified by the receiver: the cost per message of what chronfs adds, without the queue",
    ),
    (
        "chronfs",
        "checksums written and verified, timestamps, files on the disk's file system, cursors committed; where two processes take part, retention keeps four segments of 64 MiB, and the queue takes six at most",
    ),
    ("chronfs by packets", "the same; 16 messages share one reading of the clock, as those of one packet may"),
    ("chronfs, all kept", "nothing is removed, as by default: new pages all the time"),
    ("aeron", "Aeron IPC by its C client; not persisted, no checksum, no time"),
    ("iceoryx2", "publish and subscribe in shared memory; not persisted"),
    ("commitlog", "the commitlog crate, one message at a time"),
    ("commitlog, 100 at once", "the same, in batches"),
    ("write(2)", "one write to a plain file per message"),
    ("pipe", "a named pipe, one write per message"),
    ("socket", "a UNIX stream socket, one write per message"),
    ("follow.bin", "a native append, returned by a blocked read of a file in the mount"),
    ("tail -f", "a line written to a log file, as printed by `tail -f`"),
    ("mount", ""),
];

impl Report {
    pub(crate) fn new(scratch: &Scratch, cli: &Path) -> Result<Self> {
        let cpus = std::thread::available_parallelism()?;
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("?");
        let dir = scratch.dir.to_string_lossy();
        let machine = format!(
            "{} CPUs ({}), Linux {}, queues on {}",
            cpus,
            model.trim_start_matches([':', ' ', '\t']),
            first_line("uname", &["-r"]).split(['-', '+']).next().unwrap_or("?"),
            first_line("findmnt", &["-n", "-o", "FSTYPE", "-T", &dir]),
        );
        // Without the arguments that run.sh adds.
        let args: Vec<String> =
            std::env::args().skip(1).skip_while(|arg| arg == "--cli" || arg.contains('/')).collect();
        let version = first_line(&cli.to_string_lossy(), &["--version"]);
        Ok(Self {
            date: first_line("date", &["-u", "+%F"]),
            command: format!("bash bench-peers/run.sh {}", args.join(" ")).trim_end().to_owned(),
            machine,
            commit: format!("{version}, commit {}", first_line("git", &["rev-parse", "--short", "HEAD"])),
            results: BTreeMap::new(),
            tables: Vec::new(),
            dropped: 0,
            busy_percent: busy_percent(),
            failures: BTreeMap::new(),
        })
    }

    pub(crate) fn add(&mut self, sample: Sample) {
        let Sample { test, link, payload, count, elapsed_ns, values, word_ns } = sample;
        let rounds = self.results.entry((test, payload, link)).or_default();
        rounds.ns.push(elapsed_ns as f64 / count.max(1) as f64);
        rounds.word_ns.extend(word_ns);
        if !values.is_empty() {
            rounds.quantiles.push(QUANTILES.iter().map(|&(at, _)| quantile(values.iter().copied(), at)).collect());
            for (value, count) in values {
                *rounds.values.entry(value).or_default() += count;
            }
        }
    }

    /// Goes on with the others when one can't be measured.
    pub(crate) fn attempt(&mut self, what: &str, measure: impl FnOnce(&mut Self) -> Result<()>) {
        if let Err(error) = measure(self) {
            eprintln!("{what}: {error}");
            self.failures.insert(what.to_owned(), error.to_string());
        }
    }

    /// Links that took part in a test, in the order of the list above.
    pub(crate) fn links(&self, test: &str) -> Vec<&'static str> {
        let mut links: Vec<&str> = self.results.keys().filter(|key| key.0 == test).map(|key| key.2).collect();
        links.sort_unstable_by_key(|link| (LINKS.iter().position(|(name, _)| name == link), *link));
        links.dedup();
        links
    }

    pub(crate) fn payloads(&self, test: &str) -> Vec<usize> {
        let mut payloads: Vec<usize> = self.results.keys().filter(|key| key.0 == test).map(|key| key.1).collect();
        payloads.dedup();
        payloads
    }

    /// Nanoseconds per message: the median of the rounds.
    pub(crate) fn ns(&self, test: &'static str, payload: usize, link: &'static str) -> Option<f64> {
        median(self.results.get(&(test, payload, link))?.ns.clone())
    }

    /// The median of the ratios within each round: a machine that changes between rounds changes both.
    fn ratio(&self, test: &'static str, payload: usize, link: &'static str, floor: &'static str) -> Option<f64> {
        let of = |link| self.results.get(&(test, payload, link));
        let rounds = of(link)?;
        if !rounds.word_ns.is_empty() {
            let p50s = rounds.quantiles.iter().map(|quantiles| quantiles[0]).zip(&rounds.word_ns);
            return median(p50s.map(|(ours, &word)| ours as f64 / word.max(1) as f64).collect());
        }
        let floor = of(floor)?;
        let ratios = if rounds.quantiles.is_empty() {
            rounds.ns.iter().zip(&floor.ns).map(|(ns, floor)| ns / floor.max(0.01)).collect()
        } else {
            let p50s = rounds.quantiles.iter().zip(&floor.quantiles).map(|(ours, floor)| (ours[0], floor[0]));
            p50s.map(|(ours, floor)| ours as f64 / floor.max(1) as f64).collect()
        };
        median(ratios)
    }

    fn quantile(&self, test: &'static str, payload: usize, link: &'static str, index: usize) -> Option<f64> {
        let rounds = self.results.get(&(test, payload, link))?;
        median(rounds.quantiles.iter().map(|quantiles| quantiles[index] as f64).collect())
    }

    pub(crate) fn markdown(&self, name: &str, plots: &[(String, String)]) -> String {
        let title = if name == "scale" { "Scale" } else { "Beside its peers" };
        let mut out = format!(
            "# {title}\n\nMeasured {} by `{}`\non {}; {}.\n",
            self.date, self.command, self.machine, self.commit
        );
        out.push_str(
            "\nAll candidates take turns, for several rounds. A figure is the median of its rounds, a ratio the median of\n\
             the ratios within each round. The ratios count: nanoseconds say more about the machine and its neighbours.\n",
        );
        if self.busy_percent > BUSY_PERCENT {
            let _ = writeln!(
                out,
                "\n**The machine was busy**: others took {:.0} % of the time. Measure again.",
                self.busy_percent
            );
        }
        if self.dropped > 0 {
            let _ = writeln!(
                out,
                "\n{} measurements were dropped: the processors changed places meanwhile, or somebody interfered.",
                self.dropped
            );
        }
        self.by_payload(
            &mut out,
            "append",
            "Append, in bursts",
            "Nanoseconds per message. Bursts of 2 MiB with 3 ms between them. Bounded logs have wrapped around before, after 768 MiB.",
        );
        let text = "Nanoseconds per message, without a pause, over rolls of 64 MiB segments; logs that can't remove old files stop at 1 GiB. chronfs uses the files of removed segments again; *all kept* is a queue at its defaults, which needs new pages all the time: they cost more than the appends.";
        self.by_payload(&mut out, "sustained", "Append, sustained", text);
        let text = "From the end of one append to the end of the next while segments roll, including a reading of the clock (about 25 ns). As many messages have been appended before, so files are reused by then.";
        self.percentiles(&mut out, "single", "Single appends", text);
        let text = "From one process to another at full speed; the receiver reads every byte. Nanoseconds per message. Bounded logs have wrapped around before, after 768 MiB. A receiver that has caught up polls on, and takes each cache line from the sender that writes it, which slows both down. The relative placement of the two cores changes between rounds, and with it everything that passes from one to the other.";
        self.by_payload(&mut out, "stream", "Streaming", text);
        let text = "100,000 messages per second, from the time each *should* have been sent to the time it was received; the receiver polls with a pause instruction in between, as all do here, and reads every byte. Bounded logs have wrapped around before, after 768 MiB. Each measurement has the word measured before and after it; its ratio is to these two.";
        self.percentiles(&mut out, "one-way, near", "One way between two processes that share a cache", text);
        self.percentiles(&mut out, "one-way, far", "One way between two processes that share none", text);
        let text = "There and back between two processes that read every byte; polling and ratios as above.";
        self.percentiles(&mut out, "round-trip, near", "Round trip between two processes that share a cache", text);
        self.percentiles(&mut out, "round-trip, far", "Round trip between two processes that share none", text);
        self.percentiles(&mut out, "wake", "Wake", "From the append until a sleeping process has the message.");
        self.mount(&mut out);
        for (title, text, rows) in &self.tables {
            let _ = write!(out, "\n## {title}\n\n{text}\n\n");
            table(&mut out, rows);
        }
        for (title, file) in plots {
            let _ = write!(out, "\n![{title}]({file})\n");
        }
        let shown = |link: &str| self.results.keys().any(|key| key.2 == link);
        let mut notes = LINKS.iter().filter(|(link, text)| !text.is_empty() && shown(link)).peekable();
        if notes.peek().is_some() {
            out.push_str("\n## What was compared\n\n");
        }
        for (link, text) in notes {
            let _ = writeln!(out, "- **{link}**: {text}.");
        }
        if !self.failures.is_empty() {
            out.push_str("\n## Not measured\n\n");
        }
        for (what, why) in &self.failures {
            let _ = writeln!(out, "- {what}: {}", why.lines().next().unwrap_or_default());
        }
        out
    }

    fn by_payload(&self, out: &mut String, test: &'static str, title: &str, text: &str) {
        let payloads = self.payloads(test);
        if payloads.is_empty() {
            return;
        }
        let _ = write!(out, "\n## {title}\n\n{text}\n\n");
        let mut rows = vec![vec!["bytes".to_owned()]];
        rows[0].extend(self.links(test).iter().map(|link| (*link).to_owned()));
        for payload in payloads {
            let mut row = vec![payload.to_string()];
            for link in self.links(test) {
                let ratio = self.ratio(test, payload, link, "copied").filter(|_| link != "copied");
                let ratio = ratio.map_or(String::new(), |ratio| format!(" ({ratio:.1}x)"));
                row.push(self.ns(test, payload, link).map_or("-".to_owned(), |ns| human(ns) + &ratio));
            }
            rows.push(row);
        }
        table(out, &rows);
    }

    fn percentiles(&self, out: &mut String, test: &'static str, title: &str, text: &str) {
        let payloads = self.payloads(test);
        if payloads.is_empty() {
            return;
        }
        let _ = write!(out, "\n## {title}\n\n{text}\n");
        for payload in payloads {
            let _ = write!(out, "\n{payload} bytes:\n\n");
            let mut rows = vec![vec![String::new()]];
            rows[0].extend(QUANTILES.iter().map(|(_, name)| (*name).to_owned()));
            rows[0].extend(["p50 to the floor".to_owned(), "rounds".to_owned()]);
            let links = self.links(test);
            let floor = links.first().copied().unwrap_or_default();
            for link in links {
                let mut row = vec![link.to_owned()];
                row.extend(
                    (0..QUANTILES.len()).map(|at| self.quantile(test, payload, link, at).map_or("-".to_owned(), human)),
                );
                let ratio = self.ratio(test, payload, link, floor);
                row.push(ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")));
                let rounds = self.results.get(&(test, payload, link)).map_or(0, |rounds| rounds.quantiles.len());
                row.push(rounds.to_string());
                rows.push(row);
            }
            table(out, &rows);
        }
    }

    /// Pairs of the mount and the plain file.
    fn mount(&self, out: &mut String) {
        let tests: Vec<_> = self.results.keys().filter(|key| key.2 == "mount").map(|key| (key.0, key.1)).collect();
        if tests.is_empty() {
            return;
        }
        out.push_str("\n## Through the mount\n\nThe same bytes in a plain file, reads of 128 KiB.\n\n");
        let head = ["", "mount", "plain file", "mount to plain file"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for (test, payload) in tests {
            let pair = self.ns(test, payload, "mount").zip(self.ns(test, payload, "plain file"));
            let Some(((mount, plain), ratio)) = pair.zip(self.ratio(test, payload, "mount", "plain file")) else {
                continue;
            };
            // Bytes are counted where something is read, messages where something is written.
            let show = |ns: f64| if test.starts_with("read") { format!("{:.2} GB/s", 1.0 / ns) } else { human(ns) };
            rows.push(vec![test.to_owned(), show(mount), show(plain), format!("{ratio:.2}x the time")]);
        }
        table(out, &rows);
    }
}

/// Up to here a machine counts as quiet.
const BUSY_PERCENT: f64 = 3.0;

/// How much of a moment was taken away from a thread that does nothing but look at the clock, on each processor.
fn busy_percent() -> f64 {
    const MOMENT: Duration = Duration::from_millis(300);
    const GAP: Duration = Duration::from_micros(5);
    let lost = || {
        let (start, mut last, mut lost) = (Instant::now(), Instant::now(), Duration::ZERO);
        while start.elapsed() < MOMENT {
            let gap = last.elapsed();
            last += gap;
            lost += if gap > GAP { gap } else { Duration::ZERO };
        }
        100.0 * lost.as_secs_f64() / start.elapsed().as_secs_f64()
    };
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let shares: Vec<f64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cpus).map(|_| scope.spawn(lost)).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    shares.into_iter().fold(0.0, f64::max)
}

/// `3.6 ns`, `120 ns`, `28.4 us`, `1.3 ms`.
pub(crate) fn human(ns: f64) -> String {
    match ns {
        ..99.5 => format!("{ns:.1} ns"),
        ..9_999.5 => format!("{ns:.0} ns"),
        ..9_999_500.0 => format!("{:.1} us", ns / 1e3),
        _ => format!("{:.1} ms", ns / 1e6),
    }
}

fn table(out: &mut String, rows: &[Vec<String>]) {
    for (index, row) in rows.iter().enumerate() {
        let _ = writeln!(out, "| {} |", row.join(" | "));
        if index == 0 {
            let _ = writeln!(out, "|---{}|", "|--:".repeat(row.len() - 1));
        }
    }
}

pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Of values in ascending order, with how often each occurs.
pub(crate) fn quantile(values: impl Iterator<Item = (u64, u64)> + Clone, at: f64) -> u64 {
    let total: u64 = values.clone().map(|(_, count)| count).sum();
    let wanted = ((total as f64 * at).ceil() as u64).max(1);
    let mut seen = 0;
    let mut last = 0;
    for (value, count) in values {
        seen += count;
        last = value;
        if seen >= wanted {
            break;
        }
    }
    last
}
