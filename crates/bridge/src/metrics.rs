//! Figures of relays as OpenMetrics text, and a small server for them.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::fleet::Monitors;
use super::state::Report;
use super::{Failure, Result};

/// The most that a request may have.
const MAX_REQUEST: usize = 8 << 10;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Name, type, help, value.
type Row = (&'static str, &'static str, &'static str, fn(&Report) -> f64);

// Figures beyond 2^53 lose their last digits as f64.
#[allow(clippy::cast_precision_loss)]
fn number(number: u64) -> f64 {
    number as f64
}

const ROWS: &[Row] = &[
    ("healthy", "gauge", "Whether it is at work, and has made progress in the last 30 s if it lags.", |r| {
        f64::from(u8::from(r.healthy))
    }),
    ("lag_messages", "gauge", "Messages that the other side does not have.", |r| number(r.lag_messages)),
    ("lag_bytes", "gauge", "Bytes of their records.", |r| number(r.lag_bytes)),
    ("lag_seconds", "gauge", "Age of the oldest of them.", |r| r.lag_seconds),
    ("last_progress_seconds", "gauge", "Time since the other side got something, or lacked nothing.", |r| {
        r.last_progress_seconds
    }),
    ("last_seq", "gauge", "The number up to which the other side is complete.", |r| number(r.pair.seq)),
    ("messages", "counter", "Messages relayed.", |r| number(r.counts.messages)),
    ("bytes", "counter", "Bytes of their payloads.", |r| number(r.counts.bytes)),
    ("gaps", "counter", "Gap records.", |r| number(r.counts.gaps)),
    ("retries", "counter", "Fresh looks at the stream after something unexpected.", |r| number(r.counts.retries)),
    ("rewinds", "counter", "How often the stream had less than it had acknowledged.", |r| number(r.counts.rewinds)),
    ("resent_messages", "counter", "Messages sent again for that.", |r| number(r.counts.resent)),
    ("skipped", "counter", "Records passed over: void, or known already.", |r| number(r.counts.skipped)),
];

/// The text.
pub(super) fn text(reports: &[(String, Report)]) -> String {
    let mut text = String::new();
    for (name, kind, help, value) in ROWS {
        let suffix = if *kind == "counter" { "_total" } else { "" };
        let _ = writeln!(text, "# TYPE chronfs_relay_{name} {kind}\n# HELP chronfs_relay_{name} {help}");
        for (queue, report) in reports {
            let labels = format!(
                "queue=\"{}\",relay=\"{}\",direction=\"{}\"",
                escaped(queue),
                escaped(&report.name),
                report.direction
            );
            let _ = writeln!(text, "chronfs_relay_{name}{suffix}{{{labels}}} {}", value(report));
        }
    }
    text.push_str("# EOF\n");
    text
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Serves `/metrics`, and `/health` with 200 or 503, until it is dropped.
///
/// # Errors
/// [`Failure::Config`] if the address can't be used.
pub(crate) async fn serve(address: SocketAddr, monitors: Monitors) -> Result<()> {
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|error| Failure::Config(format!("metrics on {address}: {error}")))?;
    loop {
        if let Ok((connection, _)) = listener.accept().await {
            // One at a time: whoever is slow must not take the relay's memory.
            let _ = tokio::time::timeout(REQUEST_TIMEOUT, answer(connection, &monitors)).await;
        }
    }
}

async fn answer(mut connection: TcpStream, monitors: &Monitors) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < MAX_REQUEST {
        if connection.read_buf(&mut request).await? == 0 {
            break;
        }
    }
    let request = String::from_utf8_lossy(&request);
    let path = request.split_whitespace().nth(1).unwrap_or_default();
    let (status, body) = match path {
        "/metrics" => {
            let reports =
                monitors.all().into_iter().map(|(path, monitor)| (path.display().to_string(), monitor.report()));
            ("200 OK", text(&reports.collect::<Vec<_>>()))
        }
        "/health" if monitors.are_healthy() => ("200 OK", "well\n".to_owned()),
        "/health" => ("503 Service Unavailable", "stuck: see the status\n".to_owned()),
        _ => ("404 Not Found", "there are /metrics and /health\n".to_owned()),
    };
    let kind =
        if path == "/metrics" { "application/openmetrics-text; version=1.0.0; charset=utf-8" } else { "text/plain" };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes()).await?;
    connection.write_all(body.as_bytes()).await?;
    connection.shutdown().await
}
