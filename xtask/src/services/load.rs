//! Requests to a service, one after the other, counted.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

/// Between two requests of a client: a few hundred a second, not as many as there can be.
const PAUSE: Duration = Duration::from_millis(2);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Clients at a time.
const CLIENTS: usize = 2;

/// What is asked of a service.
#[derive(Clone, Copy)]
pub(super) enum Requests {
    /// HTTP requests in turn: method, path and headers, body. The answer is a 200.
    Http(&'static [(&'static str, &'static str)]),
    /// NATS: a message is published and comes back to its subscriber.
    Nats,
}

/// How that went.
#[derive(Default)]
pub(super) struct Answers {
    pub(super) good: u64,
    pub(super) failed: u64,
    /// The last failure.
    pub(super) error: Option<String>,
}

/// Clients at work.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Answers>>,
}

impl Load {
    pub(super) fn start(address: SocketAddr, requests: Requests) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |_| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || client(address, requests, &stop))
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self { stop, clients }
    }

    /// Ends the clients and sums up.
    pub(super) fn stop(self) -> Answers {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Answers::default();
        for client in self.clients {
            let answers = client.join().unwrap_or_else(|_| Answers {
                failed: 1,
                error: Some("a client panicked".into()),
                ..Answers::default()
            });
            sum.good += answers.good;
            sum.failed += answers.failed;
            sum.error = sum.error.or(answers.error);
        }
        sum
    }
}

fn client(address: SocketAddr, requests: Requests, stop: &AtomicBool) -> Answers {
    let mut answers = Answers::default();
    for turn in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        match once(address, requests, turn) {
            Ok(()) => answers.good += 1,
            Err(error) => {
                answers.failed += 1;
                answers.error = Some(format!("{error:#}"));
            }
        }
        thread::sleep(PAUSE);
    }
    answers
}

/// One request on a connection of its own.
pub(super) fn once(address: SocketAddr, requests: Requests, turn: usize) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).context("failed to connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    match requests {
        Requests::Http(requests) => {
            let (head, body) = requests[turn % requests.len()];
            let request = format!(
                "{head}\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .replace("$TURN", &turn.to_string());
            stream
                .write_all(request.as_bytes())
                .context("failed to ask")?;
            let mut answer = Vec::new();
            stream
                .read_to_end(&mut answer)
                .context("failed to read the answer")?;
            let answer = String::from_utf8_lossy(&answer);
            let status = answer.lines().next().unwrap_or_default();
            ensure!(status.contains(" 200 "), "`{head}` was answered `{status}`");
        }
        Requests::Nats => {
            let text = "CONNECT {\"verbose\":false}\r\nSUB leaktrace.$ 1\r\nPUB leaktrace.$ 5\r\nhello\r\n";
            let text = text.replace('$', &format!("{:?}.{turn}", thread::current().id()));
            stream.write_all(text.as_bytes()).context("failed to ask")?;
            for line in BufReader::new(stream).lines() {
                if line
                    .context("failed to read the answer")?
                    .starts_with("MSG ")
                {
                    return Ok(());
                }
            }
            ensure!(false, "the message did not come back");
        }
    }
    Ok(())
}
