//! `GET /metrics` over the smallest HTTP that Prometheus and curl understand: one request per connection, on loopback
//! or a unix socket. It is no web server: everything else is refused in one line.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::Meters;
use crate::doors::{UnixDoor, UnixDoorError, host_is_loopback};
use crate::settings::MetricsAt;

const REQUEST_BYTES: usize = 8 << 10;
const READERS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(5);
/// After an accept that failed, for want of descriptors as a rule.
const PAUSE: Duration = Duration::from_millis(100);

/// Why figures are not served.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The address cannot be had.
    #[error("metrics.listen: {at}: {source}; choose another address")]
    Tcp {
        /// The setting.
        at: std::net::SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The socket cannot be had.
    #[error("metrics.listen: {0}")]
    Unix(#[from] UnixDoorError),
}

/// Figures that are served for as long as it is running.
#[derive(Debug)]
pub struct Endpoint {
    listener: Listener,
    meters: Arc<Meters>,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, UnixDoor),
}

impl Endpoint {
    /// Listens where the settings say; nothing where they say `off`.
    ///
    /// # Errors
    /// Where the address or the socket cannot be had.
    pub async fn open(at: &MetricsAt, meters: Arc<Meters>) -> Result<Option<Self>, EndpointError> {
        let listener = match at {
            MetricsAt::Off => return Ok(None),
            MetricsAt::Tcp(at) => {
                let bound = TcpListener::bind(at).await;
                Listener::Tcp(bound.map_err(|source| EndpointError::Tcp { at: *at, source })?)
            }
            MetricsAt::Unix(path) => {
                let (door, listener) = UnixDoor::open(path)?;
                Listener::Unix(listener, door)
            }
        };
        Ok(Some(Self { listener, meters }))
    }

    /// Where it listens: an address, or `unix:` and a path.
    #[must_use]
    pub fn at(&self) -> Option<MetricsAt> {
        match &self.listener {
            Listener::Tcp(listener) => listener.local_addr().ok().map(MetricsAt::Tcp),
            Listener::Unix(_, door) => Some(MetricsAt::Unix(PathBuf::from(door.path()))),
        }
    }

    /// Answers until it is told to end.
    pub async fn serve(self, end: CancellationToken) {
        let readers = Arc::new(Semaphore::new(READERS));
        loop {
            let Ok(place) = readers.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                () = end.cancelled() => return,
                accepted = self.accept() => accepted,
            };
            let Ok(stream) = accepted else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let meters = self.meters.clone();
            tokio::spawn(async move {
                let _ = tokio::time::timeout(PATIENCE, answer(stream, &meters)).await;
                drop(place);
            });
        }
    }

    async fn accept(&self) -> std::io::Result<Box<dyn Stream>> {
        Ok(match &self.listener {
            Listener::Tcp(listener) => Box::new(listener.accept().await?.0),
            Listener::Unix(listener, _) => Box::new(listener.accept().await?.0),
        })
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn answer(mut stream: Box<dyn Stream>, meters: &Meters) -> std::io::Result<()> {
    let mut head = Vec::with_capacity(1 << 10);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() >= REQUEST_BYTES || stream.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    let (line, body) = match judge(&String::from_utf8_lossy(&head)) {
        Ok(()) => ("200 OK", meters.render()),
        Err((line, why)) => (line, format!("{why}\n")),
    };
    let kind = match line {
        "200 OK" => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        _ => "text/plain",
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {line}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// A web page must not read figures through somebody's browser, so origins and foreign hosts are refused.
fn judge(head: &str) -> Result<(), (&'static str, &'static str)> {
    let mut lines = head.split("\r\n");
    let mut request = lines.next().unwrap_or_default().split(' ');
    let (method, path) = (request.next().unwrap_or_default(), request.next().unwrap_or_default());
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let name = name.trim().to_ascii_lowercase();
        if name == "origin" || name.starts_with("sec-fetch-") {
            return Err(("403 Forbidden", "expected a program, found a browser"));
        }
        if name == "host" && !host_is_loopback(value.trim()) {
            return Err(("403 Forbidden", "expected localhost as the host, found another name"));
        }
    }
    match (method, path) {
        ("GET", "/metrics") => Ok(()),
        ("GET", _) => Err(("404 Not Found", "expected /metrics")),
        _ => Err(("405 Method Not Allowed", "expected GET /metrics")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_programs_on_this_machine_read_figures() {
        let ask = |line: &str, header: &str| {
            judge(&format!("{line} HTTP/1.1\r\nhost: localhost:1\r\n{header}\r\n\r\n"))
        };
        assert_eq!(ask("GET /metrics", "accept: */*"), Ok(()));
        for (line, header, status) in [
            ("GET /metrics", "Origin: http://evil.example", "403 Forbidden"),
            ("GET /metrics", "Sec-Fetch-Mode: cors", "403 Forbidden"),
            ("GET /metrics", "Host: evil.example:9421", "403 Forbidden"),
            ("GET /", "", "404 Not Found"),
            ("POST /metrics", "", "405 Method Not Allowed"),
            ("", "", "405 Method Not Allowed"),
        ] {
            assert_eq!(ask(line, header).map_err(|refusal| refusal.0), Err(status), "{line} {header}");
        }
    }

    #[tokio::test]
    async fn figures_come_over_loopback_and_a_closed_door_is_said() {
        let meters = Arc::new(Meters::default());
        meters.generated_tokens.inc_by(5);
        let at = MetricsAt::Tcp(([127, 0, 0, 1], 0).into());
        let endpoint = Endpoint::open(&at, meters).await.expect("a free port").expect("it is not off");
        let Some(MetricsAt::Tcp(address)) = endpoint.at() else { panic!("it listens by TCP") };
        let end = CancellationToken::new();
        let serving = tokio::spawn(endpoint.serve(end.clone()));
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n").await.expect("it reads");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("it answers");
        assert!(
            text.starts_with("HTTP/1.1 200 OK") && text.contains("bantam_generated_tokens_total 5"),
            "{text}"
        );
        end.cancel();
        serving.await.expect("it ends");
    }
}
