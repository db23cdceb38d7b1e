//! Figures of relays as OpenMetrics text, and a small server for them.

use std::net::SocketAddr;
use std::time::Duration;

use chronfs::metrics::Metrics;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::fleet::Monitors;
use super::state::Report;
use super::{Failure, Result};

/// The most that a request may have.
const MAX_REQUEST: usize = 8 << 10;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Name, help, value.
type Row = (&'static str, &'static str, fn(&Report) -> u64);

/// What only the relay itself knows; the rest is what others read from its file, too.
const COUNTERS: &[Row] = &[
    ("messages", "Messages relayed.", |r| r.counts.messages),
    ("bytes", "Bytes of their payloads.", |r| r.counts.bytes),
    ("gaps", "Gap records.", |r| r.counts.gaps),
    ("retries", "Fresh looks at the stream after something unexpected.", |r| r.counts.retries),
    ("rewinds", "How often the stream had less than it had acknowledged.", |r| r.counts.rewinds),
    ("resent_messages", "Messages sent again for that.", |r| r.counts.resent),
    ("skipped", "Records passed over: void, or known already.", |r| r.counts.skipped),
];

// Figures beyond 2^53 lose their last digits as f64.
#[allow(clippy::cast_precision_loss)]
fn number(number: u64) -> f64 {
    number as f64
}

/// The text.
pub(super) fn text(reports: &[(String, Report)]) -> String {
    let mut metrics = Metrics::new();
    for (queue, report) in reports {
        metrics.relay(&[("queue", queue)], &report.to_public());
        let labels = [("queue", queue.as_str()), ("relay", &report.name), ("direction", &report.direction)];
        let last_seq = "The number up to which the other side is complete.";
        metrics.gauge("chronfs_relay_last_seq", last_seq, &labels, number(report.pair.seq));
        for (name, help, value) in COUNTERS {
            metrics.counter(&format!("chronfs_relay_{name}"), help, &labels, number(value(report)));
        }
    }
    metrics.text()
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
