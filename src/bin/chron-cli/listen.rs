//! A server of one page, for `chron-cli metrics --listen`: HTTP/1.1, GET and HEAD, one request per connection.
//!
//! Whoever connects gets at most [`THREADS`] requests served at a time, of at most [`MAX_REQUEST`] bytes, each within
//! [`DEADLINE`]; there is no other state to exhaust.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::failure::{Failure, Outcome, note};

/// Requests served at a time.
const THREADS: usize = 4;
/// Longest request, in bytes. Those of Prometheus have some 300.
const MAX_REQUEST: usize = 8 << 10;
/// For receiving a request, and for sending each piece of the answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// Where the page is.
const PATH: &str = "/metrics";
const TEXT: &str = "text/plain; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A port of this host, or an address and a port.
pub(crate) fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let here = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let address = text.parse().or_else(|_| text.strip_prefix("localhost:").unwrap_or(text).parse().map(here));
    address.map_err(|_| format!("{text:?} is not an address; write a port as 9464, or 127.0.0.1:9464, [::1]:9464"))
}

/// Serves until the process ends. `page` makes the text for each request.
pub(crate) fn serve(address: SocketAddr, page: &(dyn Fn() -> Result<String, Failure> + Sync)) -> Outcome {
    let failed = |e| Failure::new(format!("cannot listen on {address}: {e}"));
    let listener = TcpListener::bind(address).map_err(failed)?;
    note(&format!("listening on http://{}{PATH}", listener.local_addr().map_err(failed)?));
    std::thread::scope(|scope| {
        for _ in 1..THREADS {
            scope.spawn(|| accept(&listener, page));
        }
        accept(&listener, page)
    })
}

fn accept(listener: &TcpListener, page: &(dyn Fn() -> Result<String, Failure> + Sync)) -> ! {
    loop {
        match listener.accept() {
            // Whoever does not wait for the answer gets none.
            Ok((mut client, _)) => drop(answer(&mut client, page)),
            // Too many open files, or a client that has gone.
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn answer(client: &mut TcpStream, page: &dyn Fn() -> Result<String, Failure>) -> io::Result<()> {
    client.set_write_timeout(Some(DEADLINE))?;
    let request = receive(client)?;
    let mut words = request.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split('?').next().unwrap_or_default();
    let (status, kind, body) = match (method, path) {
        ("GET" | "HEAD", PATH) => match page() {
            Ok(text) => ("200 OK", OPENMETRICS, text),
            Err(failure) => {
                failure.tell();
                ("503 Service Unavailable", TEXT, "the queues can't be read; the log says why\n".to_owned())
            }
        },
        ("GET" | "HEAD", _) => ("404 Not Found", TEXT, format!("the figures are at {PATH}\n")),
        _ => ("405 Method Not Allowed", TEXT, "only GET and HEAD\n".to_owned()),
    };
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n");
    client.write_all(format!("{head}\r\n{}", if method == "HEAD" { "" } else { &body }).as_bytes())
}

/// The first line of a request whose head is complete.
fn receive(client: &mut TcpStream) -> io::Result<String> {
    let deadline = Instant::now() + DEADLINE;
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    loop {
        let rest = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        client.set_read_timeout(Some(rest))?;
        let length = client.read(&mut piece)?;
        head.extend_from_slice(&piece[..length]);
        if head.windows(4).any(|end| end == b"\r\n\r\n") {
            let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
            return Ok(String::from_utf8_lossy(line).into_owned());
        }
        if length == 0 || head.len() > MAX_REQUEST || Instant::now() >= deadline {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_one_of_this_host() {
        for text in ["9464", "127.0.0.1:9464", "localhost:9464"] {
            assert_eq!(parse_address(text).unwrap().to_string(), "127.0.0.1:9464");
        }
        assert_eq!(parse_address("[::1]:9464").unwrap().to_string(), "[::1]:9464");
        for wrong in ["", "99999", ":9464", "example.org:1", "127.0.0.1"] {
            assert!(parse_address(wrong).is_err(), "{wrong}");
        }
    }
}
