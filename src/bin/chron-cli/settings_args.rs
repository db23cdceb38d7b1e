//! The options of `create` and `set`: all settings of a queue.

use chronfs::queue::Settings;
use chronfs::settings;
use clap::Args;

/// A setting as it was given.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    name: &'static str,
    text: String,
}

/// Takes the value of this setting.
fn value_of(name: &'static str) -> impl Fn(&str) -> Result<Change, String> + Clone + Send + Sync {
    move |text| {
        settings::change(&mut Settings::default(), name, text)?;
        Ok(Change { name, text: text.to_owned() })
    }
}

/// All settings of a queue.
#[derive(Debug, Args)]
#[command(next_help_heading = "Settings")]
pub(crate) struct SettingsArgs {
    /// Size up to which segment files grow, from 64KiB: at most 1GiB, a multiple of 4KiB; the largest message fits into
    /// one; 64MiB unless it is set
    #[arg(long, value_name = "SIZE", value_parser = value_of("segment-size"))]
    segment_size: Option<Change>,
    /// Refuse appends that would make the segments larger than this; with retention, messages that every reader has
    /// consumed are removed first
    #[arg(long, value_name = "SIZE", value_parser = value_of("max-bytes"))]
    max_bytes: Option<Change>,
    /// Keep this much of what every reader has consumed
    #[arg(long, value_name = "SIZE", value_parser = value_of("retain-bytes"))]
    retain_bytes: Option<Change>,
    /// Keep messages for this long; whole segments are removed, at most an eighth of the span later
    #[arg(long, value_name = "SPAN", value_parser = value_of("retain-age"))]
    retain_age: Option<Change>,
    /// Keep this many full segments
    #[arg(long, value_name = "N", value_parser = value_of("retain-segments"))]
    retain_segments: Option<Change>,
    /// Keep nothing for a reader that no process has used for this long
    #[arg(long, value_name = "SPAN", value_parser = value_of("reader-ttl"))]
    reader_ttl: Option<Change>,
    /// Keep nothing for a reader that lags by more than this
    #[arg(long, value_name = "SIZE", value_parser = value_of("max-lag"))]
    max_lag: Option<Change>,
    /// Start a segment at each multiple of this span: minute, hour, day (of UTC), 15m
    #[arg(long, value_name = "SPAN", value_parser = value_of("roll-every"))]
    roll_every: Option<Change>,
    /// Align payloads in memory to 8, 16 or 64 bytes
    #[arg(long, value_name = "BYTES", value_parser = value_of("payload-align"))]
    payload_align: Option<Change>,
}

impl SettingsArgs {
    /// Those that were given.
    pub(crate) fn given(&self) -> impl Iterator<Item = &Change> {
        let Self { segment_size, max_bytes, retain_bytes, retain_age, retain_segments, .. } = self;
        let Self { reader_ttl, max_lag, roll_every, payload_align, .. } = self;
        [segment_size, max_bytes, retain_bytes, retain_age, retain_segments]
            .into_iter()
            .chain([reader_ttl, max_lag, roll_every, payload_align])
            .flatten()
    }

    /// Changes the settings that were given.
    pub(crate) fn apply(&self, settings: &mut Settings) {
        for Change { name, text } in self.given() {
            // It was checked when the command line was parsed.
            let _ = settings::change(settings, name, text);
        }
    }
}
