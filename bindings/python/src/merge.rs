//! Several queues as one, in the order of their timestamps.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::PathBuf;

use chronfs::Queue;
use chronfs::queue::Start;
use pyo3::prelude::*;

use crate::bus;
use crate::core::{Core, Item, Limits};
use crate::errors::{self, OrRaise};
use crate::memory::warn_if_much;
use crate::message::Message;
use crate::options;
use crate::scan::{OnGap, Scan, give_way};
use crate::shared::Shared;

/// The messages of several queues in the order of their timestamps, each with its queue: `(path, message)`.
#[pyclass(frozen, module = "chronfs")]
#[derive(Debug)]
pub(crate) struct Merge {
    shared: Shared<Sources>,
    on_gap: OnGap,
}

#[derive(Debug)]
struct Sources {
    sources: Vec<SourceOf>,
    /// The time of the next message of each source that has one, and its number.
    ready: BinaryHeap<Reverse<(u64, usize)>>,
    /// The sources whose next entry is not known.
    unknown: Vec<usize>,
}

#[derive(Debug)]
struct SourceOf {
    path: PathBuf,
    core: Core,
    next: Option<Message>,
}

impl Sources {
    /// The next entry, and the number of its source.
    fn next(&mut self) -> chronfs::Result<Option<(usize, Item)>> {
        while let Some(&number) = self.unknown.last() {
            let Some(source) = self.sources.get_mut(number) else { break };
            match source.core.next()? {
                Some(Item::Message(message)) => {
                    self.ready.push(Reverse((message.timestamp_ns, number)));
                    source.next = Some(message);
                }
                Some(other) => return Ok(Some((number, other))),
                None => {}
            }
            self.unknown.pop();
        }
        let Some(Reverse((_, number))) = self.ready.pop() else { return Ok(None) };
        self.unknown.push(number);
        let next = self.sources.get_mut(number).and_then(|source| source.next.take());
        Ok(next.map(|message| (number, Item::Message(message))))
    }
}

#[pymethods]
impl Merge {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<(PathBuf, Py<PyAny>)>> {
        warn_if_much(py)?;
        loop {
            let found = self.shared.with(py, |sources| {
                let next = sources.next()?;
                let path = |number: usize| sources.sources.get(number).map(|source| source.path.clone());
                Ok(next.map(|(number, item)| (path(number).unwrap_or_default(), item)))
            })?;
            return match found.or_raise(py)? {
                None => Ok(None),
                Some((path, Item::Message(message))) => Ok(Some((path, Py::new(py, message)?.into_any()))),
                Some((_, Item::Others)) => {
                    give_way(py)?;
                    continue;
                }
                Some((path, Item::Gap(gap))) => match &self.on_gap {
                    OnGap::Raise => Err(errors::gap(py, &path, gap)),
                    OnGap::Yield => Ok(Some((path, Py::new(py, gap)?.into_any()))),
                    OnGap::Call(function) => {
                        function.call1(py, (gap,))?;
                        continue;
                    }
                },
            };
        }
    }
}

/// What is in several queues now, in the order of the timestamps: pairs of a queue's path and a message. `queues`: a
/// directory that is searched for queues, or the paths of queues. Messages of the same time come in the order of the
/// queues. Other arguments as for `Queue.scan`.
#[pyfunction]
#[pyo3(signature = (queues, *, since = None, until = None, types = None, on_gap = OnGap::Raise),
    text_signature = "(queues, *, since=None, until=None, types=None, on_gap='raise')")]
pub(crate) fn merge(
    py: Python<'_>,
    queues: &Bound<'_, PyAny>,
    since: Option<&Bound<'_, PyAny>>,
    until: Option<&Bound<'_, PyAny>>,
    types: Option<&Bound<'_, PyAny>>,
    on_gap: OnGap,
) -> PyResult<Merge> {
    let root: Option<PathBuf> = queues.extract().ok();
    let paths = match &root {
        Some(root) if Queue::exists(root).or_raise(py)? => vec![root.clone()],
        Some(root) => py.detach(|| bus::below(root)).or_raise(py)?.into_iter().map(|found| found.path).collect(),
        None => queues.try_iter()?.map(|path| path?.extract()).collect::<PyResult<Vec<PathBuf>>>()?,
    };
    let start = options::start(py, since, None, None)?;
    let until_ns = until.map(options::time_ns).transpose()?;
    let limits = Limits { types: options::types(types)?, end_seq: None, until_ns };
    let sources = py.detach(|| paths.into_iter().map(|path| open(path, start, &limits)).collect());
    let sources: Vec<SourceOf> = Result::or_raise(sources, py)?;
    let unknown = (0..sources.len()).rev().collect();
    let path = root.unwrap_or_else(|| PathBuf::from("the merged queues"));
    Ok(Merge { shared: Shared::new(Sources { sources, ready: BinaryHeap::new(), unknown }, &path), on_gap })
}

fn open(path: PathBuf, start: Start, limits: &Limits) -> chronfs::Result<SourceOf> {
    let core = Scan::of(Queue::open(&path)?, limits.clone(), start)?.open()?;
    Ok(SourceOf { path, core, next: None })
}
