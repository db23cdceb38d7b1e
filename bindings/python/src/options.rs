//! Arguments that mean times, durations, settings and types. What people write them as is read by
//! `python/chronfs/_time.py`.

use std::time::Duration;

use chronfs::queue::{ReaderOptions, Settings, Start, SyncPolicy, WaitStrategy, WriterOptions};
use chronfs::report::parse_size;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::core::Types;
use crate::errors::invalid;

/// A duration: seconds, a timedelta, or text as "15m".
pub(crate) fn duration(value: &Bound<'_, PyAny>) -> PyResult<Duration> {
    let ns = value.py().import("chronfs._time")?.getattr("duration_ns")?.call1((value,))?;
    Ok(Duration::from_nanos(ns.extract()?))
}

/// A time, in ns since the epoch: ns, a datetime, a timedelta or text before now.
pub(crate) fn time_ns(value: &Bound<'_, PyAny>) -> PyResult<u64> {
    value.py().import("chronfs._time")?.getattr("time_ns")?.call1((value,))?.extract()
}

/// A size in bytes, or text as "64MiB".
fn size(value: &Bound<'_, PyAny>) -> PyResult<u64> {
    match value.extract::<String>() {
        Ok(text) => parse_size(&text).map_err(|error| invalid(value.py(), error)),
        Err(_) => value.extract(),
    }
}

/// A message type or several.
pub(crate) fn types(value: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Types>> {
    let Some(value) = value else { return Ok(None) };
    if let Ok(one) = value.extract::<u16>() {
        return Ok(Some(Types::from_iter([one])));
    }
    let types: PyResult<Types> = value.try_iter()?.map(|one| one?.extract::<u16>()).collect();
    types.map(Some)
}

/// Where to start; only one of them may be given.
pub(crate) fn start(
    py: Python<'_>,
    since: Option<&Bound<'_, PyAny>>,
    from_seq: Option<u64>,
    start: Option<&str>,
) -> PyResult<Start> {
    match (since, from_seq, start) {
        (None, None, None) => Ok(Start::Resume),
        (Some(since), None, None) => Ok(Start::Time(time_ns(since)?)),
        (None, Some(seq), None) => Ok(Start::Seq(seq)),
        (None, None, Some("first")) => Ok(Start::First),
        (None, None, Some("end")) => Ok(Start::End),
        (None, None, Some(other)) => Err(invalid(py, format!("start={other:?}; it is \"first\" or \"end\""))),
        _ => Err(invalid(py, "give one of since=, from_seq= and start=")),
    }
}

/// `spin`: for how long a reader polls before it sleeps, in seconds.
pub(crate) fn reader(start: Start, verify: bool, spin: Option<&Bound<'_, PyAny>>) -> PyResult<ReaderOptions> {
    let wait = match spin.map(duration).transpose()? {
        None => ReaderOptions::default().wait,
        Some(Duration::ZERO) => WaitStrategy::Sleep,
        Some(spin) => WaitStrategy::Hybrid { spin },
    };
    Ok(ReaderOptions { start, verify, wait })
}

/// `sync`: (messages, interval); `max_ahead`: a duration.
pub(crate) fn writer(
    sync: Option<(u64, Bound<'_, PyAny>)>,
    max_ahead: Option<&Bound<'_, PyAny>>,
    as_standby: bool,
) -> PyResult<WriterOptions> {
    let mut options = WriterOptions { as_standby, ..WriterOptions::default() };
    if let Some((messages, interval)) = sync {
        options.sync = SyncPolicy::Every { messages, interval: duration(&interval)? };
    }
    if let Some(max_ahead) = max_ahead {
        options.max_ahead = duration(max_ahead)?;
    }
    Ok(options)
}

/// A change of one setting.
type Change = Box<dyn Fn(&mut Settings) + Send>;

/// Changes of settings by their names; None lifts a limit.
pub(crate) fn changes(given: Option<&Bound<'_, PyDict>>) -> PyResult<Vec<Change>> {
    let Some(given) = given else { return Ok(Vec::new()) };
    given.iter().map(|(name, value)| change(&name.extract::<String>()?, &value)).collect()
}

fn change(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Change> {
    let number = || value.extract::<u32>();
    let bytes = || (!value.is_none()).then(|| size(value)).transpose();
    let segment_size = || size(value).map(|bytes| u32::try_from(bytes).unwrap_or(u32::MAX));
    let span_ns = || -> PyResult<Option<u64>> {
        let span = (!value.is_none()).then(|| duration(value)).transpose()?;
        Ok(span.map(|span| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    };
    /// Sets a field.
    macro_rules! set {
        ($field:ident, $value:expr) => {{
            let value = $value?;
            Box::new(move |settings: &mut Settings| settings.$field = value)
        }};
    }
    Ok(match name {
        "segment_size" => set!(segment_size, segment_size()),
        "max_bytes" => set!(max_bytes, bytes()),
        "retain_bytes" => set!(retain_bytes, bytes()),
        "retain_segments" => set!(retain_segments, value.extract::<Option<u32>>()),
        "retain_age" => set!(retain_age_ns, span_ns()),
        "reader_ttl" => set!(reader_ttl_ns, span_ns()),
        "max_lag_bytes" => set!(max_lag_bytes, bytes()),
        "roll_every" => set!(roll_every_ns, span_ns()),
        "payload_align" => set!(payload_align, number()),
        _ => return Err(invalid(value.py(), format!("there is no setting {name:?}"))),
    })
}

/// The settings by their names; durations in seconds.
pub(crate) fn as_dict<'py>(py: Python<'py>, settings: &Settings) -> PyResult<Bound<'py, PyDict>> {
    let seconds = |ns: Option<u64>| ns.map(|ns| Duration::from_nanos(ns).as_secs_f64());
    let dict = PyDict::new(py);
    dict.set_item("segment_size", settings.segment_size)?;
    dict.set_item("max_bytes", settings.max_bytes)?;
    dict.set_item("retain_bytes", settings.retain_bytes)?;
    dict.set_item("retain_segments", settings.retain_segments)?;
    dict.set_item("retain_age", seconds(settings.retain_age_ns))?;
    dict.set_item("reader_ttl", seconds(settings.reader_ttl_ns))?;
    dict.set_item("max_lag_bytes", settings.max_lag_bytes)?;
    dict.set_item("roll_every", seconds(settings.roll_every_ns))?;
    dict.set_item("payload_align", settings.payload_align)?;
    Ok(dict)
}
