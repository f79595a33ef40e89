//! Ends a test program that hangs: a failure that names the test says more than a machine that ran
//! out of time.

use std::{
    process::abort,
    sync::{LazyLock, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// No test waits this long for a service.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// When a service was last started or ended, or has answered, and which test that was.
static LAST: LazyLock<Mutex<(Instant, String)>> = LazyLock::new(|| {
    thread::spawn(watch);
    Mutex::new((Instant::now(), String::new()))
});

/// A service starts or ends, or answers: whoever sees that does not hang.
pub(crate) fn note() {
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let test = thread::current().name().unwrap_or("?").to_owned();
    *last = (Instant::now(), test);
}

fn watch() {
    loop {
        thread::sleep(Duration::from_secs(5));
        let (since, test) = LAST.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if since.elapsed() > LIMIT {
            eprintln!(
                "test {test} hangs: for {LIMIT:?} no service of its was started, ended, or has answered"
            );
            abort();
        }
    }
}
