//! Load on a service, counted: requests of our own, one after the other, or a program made for that.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::run;

/// Between two requests of a client: a few hundred a second, not as many as there can be.
const PAUSE: Duration = Duration::from_millis(2);
/// Between two connections that a client leaves open.
const HELD_PAUSE: Duration = Duration::from_millis(200);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Clients at a time.
const CLIENTS: usize = 2;

/// What is asked of a service.
#[derive(Clone, Copy)]
pub(super) enum Requests {
    /// HTTP requests in turn: method, path and headers, body. The answer is a 200.
    Http(&'static [(&'static str, &'static str)]),
    /// Half an HTTP request. The connection stays open, and nothing is answered.
    Held(&'static str),
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

/// Load that goes on until it is stopped.
pub(super) enum Load {
    Clients(Clients),
    Program(Program),
}

impl Load {
    /// Ends it and sums up.
    pub(super) fn stop(self) -> Answers {
        match self {
            Self::Clients(clients) => clients.stop(),
            Self::Program(program) => program.stop(),
        }
    }
}

/// Clients at work.
pub(super) struct Clients {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Answers>>,
}

impl Clients {
    pub(super) fn start(address: SocketAddr, requests: Requests) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |_| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || client(address, requests, &stop))
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self { stop, clients }
    }

    fn stop(self) -> Answers {
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
    let mut held = Vec::new();
    for turn in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        match once(address, requests, turn) {
            Ok(open) => {
                answers.good += 1;
                held.extend(open);
            }
            Err(error) => {
                answers.failed += 1;
                answers.error = Some(format!("{error:#}"));
            }
        }
        thread::sleep(match requests {
            Requests::Held(_) => HELD_PAUSE,
            _ => PAUSE,
        });
    }
    answers
}

/// One request on a connection of its own, which is given back if it is to stay open.
pub(super) fn once(
    address: SocketAddr,
    requests: Requests,
    turn: usize,
) -> Result<Option<TcpStream>> {
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
        Requests::Held(head) => {
            stream.write_all(head.as_bytes()).context("failed to ask")?;
            return Ok(Some(stream));
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
                    return Ok(None);
                }
            }
            ensure!(false, "the message did not come back");
        }
    }
    Ok(None)
}

/// A program that makes load, and says now and then how many answers it gets in a second.
pub(super) struct Program {
    child: Child,
    began: Instant,
    output: PathBuf,
    /// What stands before that number.
    rate: &'static str,
}

impl Program {
    /// Starts it. What it says goes to the file `output`.
    pub(super) fn start(mut command: Command, output: PathBuf, rate: &'static str) -> Result<Self> {
        let file = File::create(&output)
            .with_context(|| format!("failed to create `{}`", output.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("failed to start `{}`", run::line(&command)))?;
        Ok(Self {
            child,
            began: Instant::now(),
            output,
            rate,
        })
    }

    /// It would go on for hours: where it has ended by itself, it was not answered as it should be.
    fn stop(mut self) -> Answers {
        let ended = self.child.try_wait();
        let seconds = self.began.elapsed().as_secs_f64();
        let said = fs::read(&self.output).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let rates: Vec<f64> = said.split(self.rate).skip(1).filter_map(number).collect();
        let rate = rates.iter().sum::<f64>() / rates.len().max(1) as f64;
        let error = match ended {
            Ok(None) => None,
            _ => Some(
                said.trim_end()
                    .lines()
                    .next_back()
                    .unwrap_or_default()
                    .into(),
            ),
        };
        Answers {
            good: (rate * seconds) as u64,
            failed: error.is_some().into(),
            error,
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already, and there is nobody to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The number at the beginning of a text.
fn number(text: &str) -> Option<f64> {
    let is_digit = |c: char| c.is_ascii_digit() || c == '.';
    let end = text.find(|c| !is_digit(c)).unwrap_or(text.len());
    text[..end].parse().ok()
}
