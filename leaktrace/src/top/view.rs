//! The state on a screen of any size.

#![forbid(unsafe_code)]

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span, Text},
    widgets::{Block, Borders, Cell, Row, Table},
};

use super::{
    analyst::Snapshot,
    details,
    rows::{Column, List, groups},
    state::{Pane, Prompt, State},
    wrap::wrap,
};
use crate::{
    report::{human, text::escape},
    verdict::Verdict,
};

/// How things look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Theme {
    pub(super) colour: bool,
}

impl Theme {
    fn verdict(self, verdict: Option<Verdict>) -> Style {
        let colour = match verdict {
            Some(Verdict::Leak) => Color::Red,
            Some(Verdict::Growing) => Color::Yellow,
            Some(Verdict::Unknown) => Color::Cyan,
            Some(Verdict::Steady) => Color::Green,
            None => return Style::new(),
        };
        match (self.colour, verdict) {
            (true, Some(Verdict::Leak)) => Style::new().fg(colour).add_modifier(Modifier::BOLD),
            (true, _) => Style::new().fg(colour),
            (false, Some(Verdict::Leak)) => BOLD,
            (false, _) => Style::new(),
        }
    }
}

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const REVERSED: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Draws the state. Gives the scrolling that was possible, to be kept in the state.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State, theme: Theme) -> u16 {
    let Some(snapshot) = &state.shown else {
        frame.render_widget("attached; the first interval is not over yet", frame.area());
        return 0;
    };
    // Where there is little room, the list comes before what is told about all.
    let height = frame.area().height;
    let mut head = head(snapshot, state.is_paused, theme);
    head.truncate(usize::from(height.saturating_sub(6).max(1)));
    let [top, tabs, body, foot] = Layout::vertical([
        Constraint::Length(head.len() as u16),
        Constraint::Length(u16::from(height > 3)),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Text::from(head), top);
    frame.render_widget(self::tabs(state, snapshot), tabs);
    frame.render_widget(self::foot(state), foot);
    let Pane::List(list) = state.pane else {
        return scrolled(frame, details::losses(&snapshot.report), state.scroll, body);
    };
    let selected = state.selected(list).filter(|_| state.is_expanded);
    let Some(row) = selected else {
        table(frame, state, snapshot, list, theme, body);
        return 0;
    };
    let [upper, lower] =
        Layout::vertical([Constraint::Percentage(40), Constraint::Percentage(60)]).areas(body);
    table(frame, state, snapshot, list, theme, upper);
    let block = Block::new().borders(Borders::TOP);
    let inner = block.inner(lower);
    frame.render_widget(block, lower);
    scrolled(
        frame,
        details::row(&snapshot.report, list, row),
        state.scroll,
        inner,
    )
}

fn scrolled(frame: &mut Frame<'_>, lines: Vec<Line<'static>>, scroll: u16, area: Rect) -> u16 {
    let lines: Vec<_> = lines
        .iter()
        .flat_map(|line| wrap(line, area.width))
        .collect();
    let height = usize::from(area.height);
    let scroll = usize::from(scroll).min(lines.len().saturating_sub(height));
    let visible: Vec<_> = lines.into_iter().skip(scroll).take(height).collect();
    frame.render_widget(Text::from(visible), area);
    scroll as u16
}

/// The process, its memory, the verdicts and losses, and what leaktrace costs: a line each.
fn head(snapshot: &Snapshot, is_paused: bool, theme: Theme) -> Vec<Line<'static>> {
    let report = &snapshot.report;
    let target = &report.target;
    let mut title = vec![Span::styled(
        format!(
            "{} (pid {}), {}, watched for {}",
            escape(&target.comm),
            target.pid,
            escape(&target.runtime),
            human::seconds(report.window.duration_s.floor())
        ),
        BOLD,
    )];
    if is_paused {
        title.push(Span::styled(" PAUSED ", REVERSED));
    }

    let summary = report.summary;
    let counts = [
        (summary.leak, Verdict::Leak),
        (summary.growing, Verdict::Growing),
        (summary.unknown, Verdict::Unknown),
        (summary.steady, Verdict::Steady),
    ];
    let mut verdicts = vec![Span::raw("verdicts: ")];
    for (index, (count, verdict)) in counts.into_iter().enumerate() {
        let style = match count {
            0 => DIM,
            _ => theme.verdict(Some(verdict)),
        };
        let comma = if index > 0 { ", " } else { "" };
        verdicts.push(Span::raw(comma));
        verdicts.push(Span::styled(format!("{count} {verdict}"), style));
    }
    verdicts.push(Span::raw(format!(
        " · {}",
        details::losses_in_short(report)
    )));

    vec![
        Line::from(title),
        Line::from(details::memory(report)),
        Line::from(verdicts),
        Line::from(details::cost(snapshot)),
    ]
}

fn tabs(state: &State, snapshot: &Snapshot) -> Line<'static> {
    let report = &snapshot.report;
    let tab = |name: String, pane| {
        let style = if state.pane == pane { REVERSED } else { DIM };
        Span::styled(format!(" {name} "), style)
    };
    let count = |list: List, all: usize| match state.look(list).rows.len() {
        shown if shown < all => format!("{shown} of {all}"),
        _ => all.to_string(),
    };
    let goroutines = report.goroutines.as_ref().map_or(0, |part| part.total);
    let mut line = vec![
        tab(
            format!("Sites {}", count(List::Sites, report.sites.len())),
            Pane::List(List::Sites),
        ),
        tab(
            format!(
                "Goroutines {goroutines} in {}",
                count(List::Goroutines, groups(report).len())
            ),
            Pane::List(List::Goroutines),
        ),
        tab(
            format!("Not seen {}", report.losses.len() + report.limits.len()),
            Pane::Losses,
        ),
    ];
    if !state.filter.is_empty() && state.prompt.is_none() {
        line.push(Span::raw(format!("  filter: {}", state.filter)));
    }
    Line::from(line)
}

fn table(
    frame: &mut Frame<'_>,
    state: &State,
    snapshot: &Snapshot,
    list: List,
    theme: Theme,
    area: Rect,
) {
    let (report, look) = (&snapshot.report, state.look(list));
    let columns = list.columns();
    let height = usize::from(area.height.saturating_sub(1));
    // Only what is to be seen is made; the selected row stays in the middle.
    let first = look.cursor.saturating_sub(height / 2);
    let first = first.min(look.rows.len().saturating_sub(height));
    let visible = look.rows.iter().enumerate().skip(first).take(height);
    let rows = visible.map(|(place, &row)| {
        let cells = list.cells(report, row).into_iter().zip(columns);
        let cells = cells.map(|(text, column)| {
            let style = match column.title {
                "verdict" => theme.verdict(list.verdict(report, row)),
                _ => Style::new(),
            };
            Cell::from(aligned(text, column)).style(style)
        });
        let style = match place == look.cursor {
            true => REVERSED,
            false => Style::new(),
        };
        Row::new(cells).style(style)
    });
    let titles = columns.iter().enumerate().map(|(at, column)| {
        let mark = if at == look.order && at > 0 {
            "▼"
        } else {
            ""
        };
        Cell::from(aligned(format!("{mark}{}", column.title), column))
    });
    let widths = columns.iter().map(|column| match column.width {
        0 => Constraint::Fill(1),
        width => Constraint::Length(width),
    });
    let empty = look.rows.is_empty();
    let table = Table::new(rows, widths)
        .header(Row::new(titles).style(DIM))
        .column_spacing(1);
    frame.render_widget(table, area);
    if empty && area.height > 1 {
        let below = Rect {
            y: area.y + 1,
            height: 1,
            ..area
        };
        frame.render_widget(details::why_empty(report, list, &state.filter), below);
    }
}

fn aligned(text: String, column: &Column) -> Line<'static> {
    let alignment = match column.is_number {
        true => Alignment::Right,
        false => Alignment::Left,
    };
    Line::from(text).alignment(alignment)
}

fn foot(state: &State) -> Line<'static> {
    match &state.prompt {
        Some(Prompt::Filter { .. }) => Line::from(format!("filter: {}_", state.filter)),
        Some(Prompt::Save { file }) => Line::from(format!("save as: {file}_")),
        None => match &state.message {
            Some(message) => Line::styled(escape(message), BOLD),
            None => Line::styled(
                "q quit  Tab pane  ↑↓ select  Enter stack  o order  / filter  p pause  s save",
                DIM,
            ),
        },
    }
}
