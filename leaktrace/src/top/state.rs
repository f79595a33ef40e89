//! What is looked at, and what a key does to it.

#![forbid(unsafe_code)]

use std::{path::PathBuf, sync::Arc};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::{analyst::Snapshot, rows::List};

/// What a key asks the outer world for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Quit,
    Save(PathBuf),
}

/// A pane of the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pane {
    List(List),
    /// What was lost and what cannot be seen.
    Losses,
}

/// A line that is being typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Prompt {
    /// Changes the filter as it is typed; what it was before, for Esc.
    Filter {
        before: String,
    },
    Save {
        file: String,
    },
}

/// How a list is looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct Look {
    /// Column by which it is ordered.
    pub(super) order: usize,
    /// Rows of the report that are shown, in order.
    pub(super) rows: Vec<usize>,
    /// Place of the selected one in `rows`.
    pub(super) cursor: usize,
    /// Which row it is, once the user has chosen one: it stays selected wherever it moves.
    chosen: Option<u64>,
}

/// The state of the screen.
pub(super) struct State {
    newest: Option<Arc<Snapshot>>,
    /// What is shown: the newest, unless paused.
    pub(super) shown: Option<Arc<Snapshot>>,
    pub(super) is_paused: bool,
    pub(super) pane: Pane,
    pub(super) sites: Look,
    pub(super) goroutines: Look,
    pub(super) filter: String,
    pub(super) prompt: Option<Prompt>,
    /// The selected row's stack and evidence are shown.
    pub(super) is_expanded: bool,
    /// Lines by which the lower part, or the pane of losses, is scrolled.
    pub(super) scroll: u16,
    /// The last thing worth knowing.
    pub(super) message: Option<String>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            newest: None,
            shown: None,
            is_paused: false,
            pane: Pane::List(List::Sites),
            sites: Look::default(),
            goroutines: Look::default(),
            filter: String::new(),
            prompt: None,
            is_expanded: false,
            scroll: 0,
            message: None,
        }
    }
}

impl State {
    /// There is a new state of the process.
    pub(super) fn update(&mut self, snapshot: Arc<Snapshot>) {
        self.newest = Some(snapshot);
        if !self.is_paused {
            self.show_newest();
        }
    }

    /// There is something to say.
    pub(super) fn say(&mut self, text: String) {
        self.message = Some(text);
    }

    /// The list that is looked at.
    pub(super) fn look(&self, list: List) -> &Look {
        match list {
            List::Sites => &self.sites,
            List::Goroutines => &self.goroutines,
        }
    }

    /// The selected row of a list.
    pub(super) fn selected(&self, list: List) -> Option<usize> {
        let look = self.look(list);
        look.rows.get(look.cursor).copied()
    }

    /// A key was pressed.
    pub(super) fn key(&mut self, key: KeyEvent) -> Option<Action> {
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        if is_control && key.code == KeyCode::Char('c') {
            return Some(Action::Quit);
        }
        match self.prompt.take() {
            Some(prompt) => self.prompt_key(prompt, key.code, is_control),
            None => self.command_key(key.code),
        }
    }

    fn command_key(&mut self, code: KeyCode) -> Option<Action> {
        self.message = None;
        match code {
            KeyCode::Char('q') => return Some(Action::Quit),
            KeyCode::Tab => self.turn_to(match self.pane {
                Pane::List(List::Sites) => Pane::List(List::Goroutines),
                Pane::List(List::Goroutines) => Pane::Losses,
                Pane::Losses => Pane::List(List::Sites),
            }),
            KeyCode::BackTab => self.turn_to(match self.pane {
                Pane::List(List::Sites) => Pane::Losses,
                Pane::List(List::Goroutines) => Pane::List(List::Sites),
                Pane::Losses => Pane::List(List::Goroutines),
            }),
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::Home | KeyCode::Char('g') => self.step(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.step(isize::MAX),
            KeyCode::PageUp if self.is_scrolled() => self.scroll = self.scroll.saturating_sub(5),
            KeyCode::PageDown if self.is_scrolled() => self.scroll = self.scroll.saturating_add(5),
            KeyCode::PageUp => self.step(-10),
            KeyCode::PageDown => self.step(10),
            KeyCode::Enter => {
                self.is_expanded = !self.is_expanded;
                self.step(0);
            }
            KeyCode::Esc if self.is_expanded => self.is_expanded = false,
            KeyCode::Esc => self.set_filter(String::new()),
            KeyCode::Char('o') => self.next_order(),
            KeyCode::Char('p' | ' ') => {
                self.is_paused = !self.is_paused;
                self.show_newest();
            }
            KeyCode::Char('/') => {
                let before = self.filter.clone();
                self.prompt = Some(Prompt::Filter { before });
            }
            KeyCode::Char('s') => {
                let file = self.newest.as_ref().map(|newest| newest.file_name.clone());
                self.prompt = file.map(|file| Prompt::Save { file });
            }
            _ => {}
        }
        None
    }

    fn prompt_key(&mut self, prompt: Prompt, code: KeyCode, is_control: bool) -> Option<Action> {
        match (prompt, code) {
            (Prompt::Filter { .. }, KeyCode::Enter) | (Prompt::Save { .. }, KeyCode::Esc) => {}
            (Prompt::Filter { before }, KeyCode::Esc) => self.set_filter(before),
            (Prompt::Save { file }, KeyCode::Enter) => {
                return (!file.is_empty()).then(|| Action::Save(PathBuf::from(file)));
            }
            (Prompt::Filter { before }, code) => {
                let mut text = std::mem::take(&mut self.filter);
                edit(&mut text, code, is_control);
                self.set_filter(text);
                self.prompt = Some(Prompt::Filter { before });
            }
            (Prompt::Save { mut file }, code) => {
                edit(&mut file, code, is_control);
                self.prompt = Some(Prompt::Save { file });
            }
        }
        None
    }

    fn is_scrolled(&self) -> bool {
        self.is_expanded || self.pane == Pane::Losses
    }

    fn turn_to(&mut self, pane: Pane) {
        self.pane = pane;
        self.scroll = 0;
    }

    fn show_newest(&mut self) {
        self.shown = self.newest.clone();
        self.list_again();
    }

    fn set_filter(&mut self, filter: String) {
        self.filter = filter;
        self.list_again();
    }

    fn next_order(&mut self) {
        if let Pane::List(list) = self.pane {
            let look = self.look_mut(list);
            look.order = list.next_order(look.order);
            self.list_again();
        }
    }

    fn look_mut(&mut self, list: List) -> &mut Look {
        match list {
            List::Sites => &mut self.sites,
            List::Goroutines => &mut self.goroutines,
        }
    }

    /// Moves the selection by so many rows, and holds on to the row it comes to.
    fn step(&mut self, rows: isize) {
        let (Pane::List(list), Some(snapshot)) = (self.pane, self.shown.clone()) else {
            self.scroll = match rows {
                isize::MIN => 0,
                isize::MAX => self.scroll,
                rows => self.scroll.saturating_add_signed(rows as i16),
            };
            return;
        };
        let look = self.look_mut(list);
        let last = look.rows.len().saturating_sub(1);
        look.cursor = look.cursor.saturating_add_signed(rows).min(last);
        let row = look.rows.get(look.cursor);
        look.chosen = row.map(|row| list.identity(&snapshot.report, *row));
        if rows != 0 {
            self.scroll = 0;
        }
    }

    /// Which rows there are, and where the chosen ones have gone.
    fn list_again(&mut self) {
        let Some(snapshot) = self.shown.clone() else {
            return;
        };
        let (report, filter) = (&snapshot.report, self.filter.clone());
        for list in [List::Sites, List::Goroutines] {
            let look = self.look_mut(list);
            look.rows = list.rows(report, &filter, look.order);
            let mut rows = look.rows.iter();
            let place = look
                .chosen
                .and_then(|chosen| rows.position(|row| list.identity(report, *row) == chosen));
            let last = look.rows.len().saturating_sub(1);
            look.cursor = place.unwrap_or(look.cursor).min(last);
        }
    }
}

/// Edits a line at its end.
fn edit(text: &mut String, code: KeyCode, is_control: bool) {
    match code {
        KeyCode::Char('u') if is_control => text.clear(),
        KeyCode::Char(c) if !is_control && !c.is_control() => text.push(c),
        KeyCode::Backspace => drop(text.pop()),
        _ => {}
    }
}
