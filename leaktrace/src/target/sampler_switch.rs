//! The one thing that leaktrace ever writes into a target, and only where the user asked for it by
//! name: `runtime.MemProfileRate`, to switch on a Go heap sampler that is off.
//!
//! Contract: what was there is put back by [`SamplerSwitch::put_back`], or when the switch is
//! dropped; but only if the value is still the one written here. Everything goes through one handle
//! of `/proc/PID/mem`, which stays with the address space it was opened on: after an exec or the
//! target's end it reaches nothing, never another program. A lock on that handle keeps a second
//! leaktrace from the same target; the kernel gives it up with the process that holds it.
//!
//! The runtime reads the variable without a lock at every allocation. 0 and [`RATE`] differ in one
//! byte, so it sees the one or the other whatever the size of the stores that the kernel makes.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use procfs::{ProcError, process::Process};
use rustix::fs::{FlockOperation, OFlags, flock};

/// What is written: Go's own default, one sample in 512 KiB (runtime/mprof.go, Go 1.19 to 1.27).
pub const RATE: u64 = 512 << 10;

/// Why the sampler could not be switched on.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// The target has none that could be switched on.
    #[error("--go-enable-heap-profile cannot be used on process {pid}: {reason}")]
    Unsupported {
        /// The target.
        pid: i32,
        /// Why.
        reason: String,
    },
    /// The memory may not be written.
    #[error(
        "not permitted to write to process {pid}, as --go-enable-heap-profile does: that of another user takes \
         CAP_DAC_OVERRIDE besides"
    )]
    NotPermitted {
        /// The target.
        pid: i32,
    },
    /// Another leaktrace does so at this moment.
    #[error(
        "another leaktrace has switched the heap sampler of process {pid} on: wait for its end, or \
         leave out --go-enable-heap-profile"
    )]
    Busy {
        /// The target.
        pid: i32,
    },
    /// The variable is not what it was when the plan was made.
    #[error(
        "runtime.MemProfileRate of process {pid} has become {value} meanwhile: nothing was written"
    )]
    Changed {
        /// The target.
        pid: i32,
        /// What it is.
        value: u64,
    },
    /// The memory could not be read or written.
    #[error("failed to switch the heap sampler of process {pid} on")]
    Io {
        /// The target.
        pid: i32,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

/// What became of the variable in the end.
#[derive(Debug)]
pub enum PutBack {
    /// It was never written, or has been put back before.
    NotNeeded,
    /// The value before is there again.
    Done,
    /// The target is gone, and its memory with it.
    TargetGone,
    /// The target has changed it to this: nothing was written.
    Changed(u64),
    /// It could not be read or written.
    Failed(io::Error),
}

/// Switches the heap sampler of one process.
#[derive(Debug)]
pub struct SamplerSwitch {
    pid: i32,
    memory: File,
    address: u64,
    /// What is there, and what is to be there at the end.
    found: u64,
    before: u64,
    on: bool,
}

impl SamplerSwitch {
    /// A switch for the variable at `address`, which is `found` now and was `before` without
    /// leaktrace. Nothing is written yet.
    pub(super) fn open(
        process: &Process,
        address: u64,
        found: u64,
        before: u64,
    ) -> Result<Self, SwitchError> {
        let pid = process.pid();
        let memory = process
            .open_relative_flags("mem", OFlags::RDWR | OFlags::CLOEXEC)
            .map_err(|error| match error {
                ProcError::PermissionDenied(_) => SwitchError::NotPermitted { pid },
                error => SwitchError::Io {
                    pid,
                    source: io::Error::other(error.to_string()),
                },
            })?;
        match flock(&memory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(SwitchError::Busy { pid }),
            Err(error) => {
                let source = error.into();
                return Err(SwitchError::Io { pid, source });
            }
        }
        Ok(Self {
            pid,
            memory,
            address,
            found,
            before,
            on: false,
        })
    }

    /// The target.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// `runtime.MemProfileRate` as it was found.
    pub fn found(&self) -> u64 {
        self.found
    }

    /// What it was without leaktrace: what it is to be at the end.
    pub fn before(&self) -> u64 {
        self.before
    }

    /// Switches the sampler on. From here on it must be put back.
    ///
    /// # Errors
    ///
    /// The variable has changed, or cannot be written.
    pub fn turn_on(&mut self) -> Result<(), SwitchError> {
        let pid = self.pid;
        let io = |source| SwitchError::Io { pid, source };
        let value = self.read().map_err(io)?;
        if value != self.found {
            return Err(SwitchError::Changed { pid, value });
        }
        self.on = true;
        if value != RATE {
            self.write(RATE).map_err(io)?;
        }
        Ok(())
    }

    /// Puts the value before back, if the variable still has the value written here.
    pub fn put_back(&mut self) -> PutBack {
        if !std::mem::take(&mut self.on) {
            return PutBack::NotNeeded;
        }
        let put_back = self.read().and_then(|value| match value {
            RATE => self.write(self.before).map(|()| PutBack::Done),
            value if value == self.before => Ok(PutBack::Done),
            value => Ok(PutBack::Changed(value)),
        });
        put_back.unwrap_or_else(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => PutBack::TargetGone,
            _ => PutBack::Failed(error),
        })
    }

    /// The end of the file stands for an address space that is no more.
    fn read(&self) -> io::Result<u64> {
        let mut word = [0; 8];
        self.memory.read_exact_at(&mut word, self.address)?;
        Ok(u64::from_le_bytes(word))
    }

    /// One write of eight bytes, read back.
    fn write(&self, value: u64) -> io::Result<()> {
        match self.memory.write_at(&value.to_le_bytes(), self.address)? {
            8 => {}
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            written => {
                return Err(io::Error::other(format!(
                    "{written} of 8 bytes were written"
                )));
            }
        }
        match self.read()? {
            now if now == value => Ok(()),
            now => Err(io::Error::other(format!(
                "{value} was written and {now} was read back"
            ))),
        }
    }
}

impl Drop for SamplerSwitch {
    /// After a panic: all other ways out have put it back by then and said what came of it.
    fn drop(&mut self) {
        match self.put_back() {
            PutBack::NotNeeded | PutBack::Done | PutBack::TargetGone => {}
            PutBack::Changed(value) => eprintln!(
                "leaktrace: runtime.MemProfileRate of process {} is {value}: left as it is",
                self.pid
            ),
            PutBack::Failed(error) => eprintln!(
                "leaktrace: failed to put runtime.MemProfileRate of process {} back: {error}",
                self.pid
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        process::{Child, Command, Stdio},
        sync::atomic::{AtomicU64, Ordering::SeqCst},
        thread,
    };

    use super::*;

    /// A switch for a variable of this very process.
    fn switch(rate: &AtomicU64) -> SamplerSwitch {
        let process = Process::myself().unwrap();
        let address = rate.as_ptr() as u64;
        loop {
            match SamplerSwitch::open(&process, address, rate.load(SeqCst), 0) {
                // A process that another test starts has the lock, too, until it has become its program.
                Err(SwitchError::Busy { .. }) => thread::yield_now(),
                switch => return switch.unwrap(),
            }
        }
    }

    #[test]
    fn the_sampler_is_on_until_it_is_put_back() {
        let _one = ONE_AT_A_TIME.lock().unwrap();
        let rate = AtomicU64::new(0);
        let mut switch = switch(&rate);
        assert!(matches!(switch.put_back(), PutBack::NotNeeded));
        switch.turn_on().unwrap();
        assert_eq!(rate.load(SeqCst), RATE);
        assert!(matches!(switch.put_back(), PutBack::Done));
        assert_eq!(rate.load(SeqCst), 0);
        assert!(matches!(switch.put_back(), PutBack::NotNeeded));
    }

    #[test]
    fn a_panic_puts_it_back() {
        let _one = ONE_AT_A_TIME.lock().unwrap();
        let rate = AtomicU64::new(0);
        let result = std::panic::catch_unwind(|| {
            let mut switch = switch(&rate);
            switch.turn_on().unwrap();
            assert_eq!(rate.load(SeqCst), 0, "on purpose");
        });
        assert!(result.is_err());
        assert_eq!(rate.load(SeqCst), 0);
    }

    #[test]
    fn what_the_target_has_set_itself_stays() {
        let _one = ONE_AT_A_TIME.lock().unwrap();
        let rate = AtomicU64::new(0);
        let mut late = switch(&rate);
        rate.store(4096, SeqCst);
        assert!(matches!(
            late.turn_on(),
            Err(SwitchError::Changed { value: 4096, .. })
        ));
        assert!(matches!(late.put_back(), PutBack::NotNeeded));
        drop(late);

        rate.store(0, SeqCst);
        let mut switch = switch(&rate);
        switch.turn_on().unwrap();
        rate.store(4096, SeqCst);
        assert!(matches!(switch.put_back(), PutBack::Changed(4096)));
        assert_eq!(rate.load(SeqCst), 4096);
    }

    #[test]
    fn what_a_killed_recording_left_is_put_back() {
        let _one = ONE_AT_A_TIME.lock().unwrap();
        let rate = AtomicU64::new(RATE);
        let mut switch = switch(&rate);
        switch.turn_on().unwrap();
        assert!(matches!(switch.put_back(), PutBack::Done));
        assert_eq!(rate.load(SeqCst), 0);
    }

    #[test]
    fn two_do_not_switch_one_process() {
        let _one = ONE_AT_A_TIME.lock().unwrap();
        let rate = AtomicU64::new(0);
        let first = switch(&rate);
        let process = Process::myself().unwrap();
        let second = SamplerSwitch::open(&process, first.address, 0, 0);
        assert!(matches!(second, Err(SwitchError::Busy { .. })));
        drop(first);
        drop(switch(&rate));
    }

    #[test]
    fn a_process_that_is_gone_is_not_written_to() {
        let mut child = Sleeper::start();
        let process = Process::new(child.0.id() as i32).unwrap();
        // Some word of its stack.
        let address = process.stat().unwrap().startstack & !7;
        let mut word = [0; 8];
        let memory = process.mem().unwrap();
        memory.read_exact_at(&mut word, address).unwrap();
        let found = u64::from_le_bytes(word);
        let mut switch = SamplerSwitch::open(&process, address, found, found).unwrap();
        switch.turn_on().unwrap();
        child.end();
        assert!(matches!(switch.put_back(), PutBack::TargetGone));
    }

    /// The lock is on the process, and all these tests switch this one.
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

    /// A process that waits for its stdin to close.
    struct Sleeper(Child);

    impl Sleeper {
        fn start() -> Self {
            let mut child = Command::new("cat")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            // Once it answers, its exec is over.
            let mut answer = [0];
            child.stdin.as_mut().unwrap().write_all(b"?").unwrap();
            let stdout = child.stdout.as_mut().unwrap();
            stdout.read_exact(&mut answer).unwrap();
            Self(child)
        }

        fn end(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }
}
