//! Profiles that a service serves of itself, and recordings of the same collection.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use nix::sys::signal::Signal;

use crate::{Finished, Leaktrace, Service};

/// Records a Go service for so many seconds, and fetches what it serves under `path` of the collection
/// that the recording ends with.
///
/// The profile is that of the last collection but one, published when the last began; so one is asked for,
/// and nothing is collected from there on until both have read it.
///
/// # Panics
///
/// The service does not answer, or collects all the same.
pub fn record_what_is_served(
    service: &mut Service,
    seconds: f64,
    path: &str,
) -> (Finished, Vec<u8>) {
    service.wait_for("t_s", 0.0);
    let run = Leaktrace::record(service.pid(), [""; 0]);
    service.ask("now");
    let attached_s = service.truth("t_s");
    service.wait_for("t_s", attached_s + seconds);
    service.ask("pause");
    service.ask("gc");
    let cycle = service.truth("num_gc");
    run.signal(Signal::SIGINT);
    let finished = run.wait();
    let served = get(service.text("http"), path);
    service.ask("now");
    assert_eq!(service.truth("num_gc"), cycle, "it collected meanwhile");
    (finished, served)
}

/// The body of what a server on loopback answers.
///
/// # Panics
///
/// There is none, or it refuses.
pub fn get(address: &str, path: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).expect("something is served");
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").expect("the server reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    let end = answer.windows(4).position(|part| part == b"\r\n\r\n");
    let body = answer.split_off(end.expect("a head and a body") + 4);
    let head = String::from_utf8_lossy(&answer);
    assert!(head.contains(" 200 "), "{head}");
    body
}
