//! The terminal: keys in, pictures out, and as it was in the end.

use std::{
    io,
    mem::ManuallyDrop,
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use crossterm::event::{self, Event, KeyEventKind};

use super::{
    analyst::{Input, Update},
    state::{Action, State},
    view::{Theme, draw},
};

/// How long a key may wait for its effect, and an update for being seen.
const TICK: Duration = Duration::from_millis(50);

/// Why the screen was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// The user has seen enough.
    Quit,
    /// The recording is over.
    Over,
}

/// The terminal as it was, however this ends.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        // It fails where the terminal is gone, and there is nobody to tell then.
        let _ = ratatui::try_restore();
        let _ = crossterm::execute!(io::stdout(), crossterm::cursor::Show);
    }
}

/// Shows what comes until the user quits or the recording `is_over`. The terminal is taken over with the
/// first picture: what keeps a recording from beginning is said on it as it is.
pub(super) fn show(
    updates: &Receiver<Update>,
    analyst: &Sender<Input>,
    colour: bool,
    is_over: impl Fn() -> bool,
) -> Result<Shown> {
    let mut state = State::default();
    loop {
        match updates.recv_timeout(TICK) {
            Ok(update) => {
                take(&mut state, update);
                if state.shown.is_some() {
                    break;
                }
            }
            Err(_) if is_over() => return Ok(Shown::Over),
            Err(_) => {}
        }
    }

    let restored = Restored;
    // From here on a panic, on any thread, restores the terminal before it is told.
    // Its own drop tells on stderr what fails, and panics where that is a terminal that is gone.
    let terminal = ratatui::try_init().context("failed to set up the terminal")?;
    let mut terminal = ManuallyDrop::new(terminal);
    let keys = events();
    let mut is_changed = true;
    let shown = loop {
        while let Ok(update) = updates.try_recv() {
            take(&mut state, update);
            is_changed = true;
        }
        if is_over() {
            break Shown::Over;
        }
        if is_changed {
            let mut scroll = 0;
            terminal
                .draw(|frame| scroll = draw(frame, &state, Theme { colour }))
                .context("failed to write to the terminal")?;
            state.scroll = scroll;
        }
        let event = match keys.recv_timeout(TICK) {
            Ok(event) => Some(event.context("failed to read the terminal's keys")?),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => None,
        };
        is_changed = event.is_some();
        if let Some(Event::Key(key)) = event
            && key.kind == KeyEventKind::Press
        {
            match state.key(key) {
                Some(Action::Quit) => break Shown::Quit,
                Some(Action::Save(path)) => save(analyst, &path),
                None => {}
            }
        }
    };
    drop(restored);
    Ok(shown)
}

/// What comes from the terminal, read on a thread that ends with the process: crossterm does not come back
/// from a terminal that has been closed, which is when the screen must end.
fn events() -> Receiver<io::Result<Event>> {
    let (sender, events) = channel();
    thread::spawn(move || {
        loop {
            let event = event::read();
            let has_failed = event.is_err();
            if sender.send(event).is_err() || has_failed {
                return;
            }
        }
    });
    events
}

fn save(analyst: &Sender<Input>, path: &Path) {
    // If the analyst is gone, so is the recording, and the screen will be.
    let _ = analyst.send(Input::Save(path.to_owned()));
}

fn take(state: &mut State, update: Update) {
    match update {
        Update::Snapshot(snapshot) => state.update(Arc::clone(&snapshot)),
        Update::Message(text) => state.say(text),
    }
}
