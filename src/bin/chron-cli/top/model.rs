//! What `top` knows: the queues below the root, and what changed in each between two refreshes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use chronfs::Queue;
use chronfs::bus::{Relay, RouterDiscovery};
use chronfs::queue::{Inspection, ReaderInfo};

use crate::failure::{Failure, explained, one_line};
use crate::names::name_below;

/// Rates that are remembered for the sparkline.
const HISTORY: usize = 120;
/// Queues off the screen that are read at each refresh, in turn: a refresh costs the same however many there are.
const OTHERS: usize = 100;

/// What the rows are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SortBy {
    Name,
    Rate,
    Lag,
}

impl SortBy {
    pub(super) fn next(self) -> Self {
        match self {
            Self::Name => Self::Rate,
            Self::Rate => Self::Lag,
            Self::Lag => Self::Name,
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Rate => "rate",
            Self::Lag => "lag",
        }
    }
}

/// One queue.
#[derive(Debug)]
pub(super) struct Row {
    path: PathBuf,
    /// Below the root, escaped for a terminal.
    pub(super) name: String,
    queue: Option<Queue>,
    pub(super) ready: bool,
    pub(super) lease: &'static str,
    pub(super) writer: &'static str,
    /// None: not read yet.
    pub(super) messages: Option<u64>,
    /// Timestamp of the newest message; 0 if there is none.
    pub(super) newest_ns: u64,
    /// Size of the segments.
    pub(super) disk_bytes: u64,
    /// Mean size of the retained records.
    mean_bytes: f64,
    pub(super) readers: Vec<ReaderInfo>,
    pub(super) relays: Vec<Relay>,
    /// Messages per second, one for each refresh, the newest last.
    pub(super) rates: VecDeque<f64>,
    /// Why it can't be read, if it can't.
    pub(super) trouble: Option<String>,
    seen: Option<(Instant, u64)>,
}

impl Row {
    pub(super) fn rate(&self) -> f64 {
        self.rates.back().copied().unwrap_or(0.0)
    }

    /// Bytes per second: an estimate, from the sizes of all retained messages.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(super) fn bytes_rate(&self) -> u64 {
        (self.rate() * self.mean_bytes) as u64
    }

    /// The greatest lag of its readers and relays.
    pub(super) fn lag(&self) -> u64 {
        let relays = self.relays.iter().map(|relay| relay.lag_messages);
        self.readers.iter().map(|reader| reader.lag_messages).chain(relays).max().unwrap_or(0)
    }

    /// Whether one of its relays is stuck, dead or waits for an operator.
    pub(super) fn relay_is_in_trouble(&self) -> bool {
        self.relays.iter().any(|relay| relay.trouble().is_some())
    }

    fn new(root: &Path, path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            name: one_line(&name_below(root, path)),
            queue: None,
            ready: false,
            lease: "-",
            writer: "-",
            messages: None,
            newest_ns: 0,
            disk_bytes: 0,
            mean_bytes: 0.0,
            readers: Vec::new(),
            relays: Vec::new(),
            rates: VecDeque::new(),
            trouble: None,
            seen: None,
        }
    }

    fn look(&mut self) {
        match self.inspect() {
            Ok(inspection) => self.enter(inspection),
            Err(error) => {
                self.trouble = Some(one_line(&explained(&error)));
                self.queue = None;
            }
        }
    }

    fn inspect(&mut self) -> Result<Inspection, chronfs::Error> {
        if self.queue.is_none() {
            self.queue = Some(Queue::open(&self.path)?);
        }
        match &self.queue {
            Some(queue) => queue.inspect(),
            None => Queue::open(&self.path)?.inspect(),
        }
    }

    fn enter(&mut self, inspection: Inspection) {
        let next_seq = inspection.bounds.next_seq;
        let now = Instant::now();
        if let Some((then, before)) = self.seen {
            // Rates are for people.
            #[allow(clippy::cast_precision_loss)]
            let count = next_seq.saturating_sub(before) as f64;
            self.rates.push_back(count / now.duration_since(then).as_secs_f64().max(1e-3));
            if self.rates.len() > HISTORY {
                self.rates.pop_front();
            }
        }
        self.seen = Some((now, next_seq));
        self.messages = Some(inspection.messages);
        self.newest_ns = inspection.bounds.last_timestamp_ns;
        self.disk_bytes = inspection.segments.iter().map(|segment| segment.bytes).sum();
        // A mean for people.
        #[allow(clippy::cast_precision_loss)]
        let mean_bytes = inspection.bytes as f64 / inspection.messages.max(1) as f64;
        self.mean_bytes = mean_bytes;
        self.readers = inspection.readers;
        self.relays = chronfs::bus::relays(&self.path);
        self.trouble = None;
        self.writer = inspection.writer.state.as_str();
    }
}

/// Everything that is shown.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) root: PathBuf,
    discovery: RouterDiscovery,
    pub(super) rows: Vec<Row>,
    pub(super) sort_by: SortBy,
    /// The chosen row's path: it stays chosen wherever it moves.
    selected: Option<PathBuf>,
    /// The path of the last off-screen queue that was read.
    turn: PathBuf,
}

impl Model {
    pub(super) fn new(root: &Path) -> Result<Self, Failure> {
        let discovery = crate::watch::discover(root)?;
        let (rows, sort_by, selected) = (Vec::new(), SortBy::Name, None);
        Ok(Self { root: root.to_path_buf(), discovery, rows, sort_by, selected, turn: PathBuf::new() })
    }

    /// Reads the queues whose rows show, and some of the others.
    pub(super) fn look(&mut self, shown: Range<usize>) -> Result<(), Failure> {
        let shown: BTreeSet<PathBuf> =
            self.rows.iter().take(shown.end).skip(shown.start).map(|r| r.path.clone()).collect();
        self.discover()?;
        let mut others: Vec<&Path> =
            self.rows.iter().map(|row| row.path.as_path()).filter(|path| !shown.contains(*path)).collect();
        others.sort_unstable();
        // Those after the last one first, then from the beginning.
        let start = others.partition_point(|path| *path <= self.turn.as_path());
        others.rotate_left(start);
        let turns: BTreeSet<PathBuf> = others.iter().take(OTHERS).map(|path| path.to_path_buf()).collect();
        if let Some(last) = others.get(turns.len().wrapping_sub(1)) {
            self.turn = last.to_path_buf();
        }
        self.look_at(|row| shown.contains(&row.path) || turns.contains(&row.path));
        Ok(())
    }

    /// Reads every queue.
    pub(super) fn look_at_all(&mut self) -> Result<(), Failure> {
        self.discover()?;
        self.look_at(|_| true);
        Ok(())
    }

    fn discover(&mut self) -> Result<(), Failure> {
        use chronfs::bus::Change;

        for event in self.discovery.poll()? {
            match event.change {
                Change::Added => self.rows.push(Row::new(&self.root, &event.path)),
                Change::Removed => self.rows.retain(|row| row.path != event.path),
                _ => {}
            }
        }
        let endpoints: BTreeMap<_, _> = self.discovery.endpoints().collect();
        for row in &mut self.rows {
            if let Some(endpoint) = endpoints.get(row.path.as_path()) {
                row.ready = endpoint.ready;
                row.lease = endpoint.lease.map_or("-", |lease| lease.as_str());
            }
        }
        Ok(())
    }

    fn look_at(&mut self, wanted: impl Fn(&Row) -> bool) {
        self.rows.iter_mut().filter(|row| wanted(row)).for_each(Row::look);
        self.sort();
    }

    pub(super) fn sort(&mut self) {
        let sort_by = self.sort_by;
        self.rows.sort_by(|a, b| {
            let order = match sort_by {
                SortBy::Name => std::cmp::Ordering::Equal,
                SortBy::Rate => b.rate().total_cmp(&a.rate()),
                SortBy::Lag => b.lag().cmp(&a.lag()),
            };
            order.then_with(|| a.path.cmp(&b.path))
        });
    }

    /// The chosen row's index; the first one if none was chosen, or it is gone.
    pub(super) fn selected(&self) -> usize {
        let chosen = self.selected.as_ref();
        self.rows.iter().position(|row| Some(&row.path) == chosen).unwrap_or(0)
    }

    pub(super) fn select(&mut self, index: usize) {
        let index = index.min(self.rows.len().saturating_sub(1));
        self.selected = self.rows.get(index).map(|row| row.path.clone());
    }

    /// How many directories can't be read.
    pub(super) fn denied(&self) -> usize {
        self.discovery.denied().count()
    }

    /// Messages per second of all queues.
    pub(super) fn total_rate(&self) -> f64 {
        self.rows.iter().map(Row::rate).fold(0.0, |sum, rate| sum + rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refresh_costs_the_same_however_many_queues_there_are() {
        const COUNT: usize = 1000;
        let dir = tempfile::tempdir().unwrap();
        let settings = chronfs::queue::Settings { segment_size: 64 << 10, ..Default::default() };
        let first = Queue::create(dir.path().join("0000"), &settings).unwrap();
        for index in 1..COUNT {
            let path = dir.path().join(format!("{index:04}"));
            std::fs::create_dir(&path).unwrap();
            for file in ["control.meta", "000000000.q"] {
                std::fs::hard_link(first.path().join(file), path.join(file)).unwrap();
            }
        }
        let mut model = Model::new(dir.path()).unwrap();
        let looks = |model: &Model| {
            model.rows.iter().map(|row| row.rates.len() + usize::from(row.seen.is_some())).collect::<Vec<_>>()
        };
        // Nothing is known yet, so that nothing shows.
        model.look(0..0).unwrap();
        assert_eq!((model.rows.len(), looks(&model).iter().sum::<usize>()), (COUNT, OTHERS));
        for _ in 0..30 {
            model.look(500..520).unwrap();
        }
        let looks = looks(&model);
        assert_eq!(looks.iter().sum::<usize>(), OTHERS + 30 * (20 + OTHERS));
        assert!(looks[500..520].iter().all(|&count| count >= 30));
        // About a tenth of the others each time: each has been read three times.
        assert!(looks.iter().all(|&count| count >= 3), "{looks:?}");
    }
}
