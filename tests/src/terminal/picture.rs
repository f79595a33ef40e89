//! A screen as a picture that any browser shows.

use std::fmt::Write as _;

use vt100::{Cell, Color, Screen};

/// Size of a cell, in pixels.
const WIDTH: u32 = 8;
const HEIGHT: u32 = 17;
const INK: &str = "#d0d0d0";
const PAPER: &str = "#101418";

/// The sixteen colours of a terminal.
const PALETTE: [&str; 16] = [
    "#101418", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#d0d0d0",
    "#5c6370", "#ff7b85", "#a9d689", "#f5d08b", "#71bfff", "#d688ed", "#66c6d2", "#ffffff",
];

/// The screen as SVG.
pub(super) fn svg(screen: &Screen) -> String {
    let (rows, columns) = screen.size();
    let (width, height) = (
        u32::from(columns.get()) * WIDTH,
        u32::from(rows.get()) * HEIGHT,
    );
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"DejaVu Sans Mono, monospace\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"{PAPER}\"/>\n"
    );
    for row in 0..rows.get() {
        for column in 0..columns.get() {
            if let Some(cell) = screen.cell(row, column) {
                put(
                    &mut svg,
                    cell,
                    u32::from(column) * WIDTH,
                    u32::from(row) * HEIGHT,
                );
            }
        }
    }
    svg + "</svg>\n"
}

fn put(svg: &mut String, cell: &Cell, x: u32, y: u32) {
    let ink = colour(cell.fgcolor()).unwrap_or_else(|| INK.to_owned());
    let paper = colour(cell.bgcolor());
    let (ink, paper) = match cell.inverse() {
        true => (paper.unwrap_or_else(|| PAPER.to_owned()), Some(ink)),
        false => (ink, paper),
    };
    if let Some(paper) = paper {
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"{paper}\"/>"
        );
    }
    let text = cell.contents();
    if text.trim().is_empty() {
        return;
    }
    let weight = if cell.bold() {
        " font-weight=\"bold\""
    } else {
        ""
    };
    let dim = if cell.dim() { " opacity=\"0.6\"" } else { "" };
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x}\" y=\"{}\" fill=\"{ink}\"{weight}{dim}>{text}</text>",
        y + HEIGHT - 4
    );
}

fn colour(colour: Color) -> Option<String> {
    match colour {
        Color::Default => None,
        Color::Idx(index) => Some(PALETTE[usize::from(index) % 16].to_owned()),
        Color::Rgb(r, g, b) => Some(format!("#{r:02x}{g:02x}{b:02x}")),
    }
}
