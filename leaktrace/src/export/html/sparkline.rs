//! Sparklines: a series as a line of a few dozen pixels.

use std::fmt::Write as _;

use maud::{Markup, html};

use crate::series;

/// Points of a line, and its size in pixels.
const POINTS: usize = 40;
const WIDTH: f64 = 96.0;
const HEIGHT: f64 = 20.0;

/// Draws `[t_s, value]` from zero to its peak; nothing for fewer than two moments.
pub(super) fn sparkline(series: &[(f64, u64)]) -> Markup {
    let points = series::thin(series, POINTS);
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return Markup::default();
    };
    let length = last.0 - first.0;
    if length <= 0.0 {
        return Markup::default();
    }
    let peak = points.iter().map(|point| point.1).max().unwrap_or(0).max(1) as f64;
    let mut line = String::new();
    for &(t, value) in &points {
        let x = (t - first.0) / length * WIDTH;
        let y = (HEIGHT - 1.0) - value as f64 / peak * (HEIGHT - 2.0);
        let _ = write!(line, "{x:.0},{y:.1} ");
    }
    html! {
        svg.spark viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) preserveAspectRatio="none" aria-hidden="true" {
            polyline points=(line.trim_end()) {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_goes_from_corner_to_corner() {
        let drawn = sparkline(&[(0.0, 0), (5.0, 50), (10.0, 100)]).into_string();
        assert!(
            drawn.contains(r#"points="0,19.0 48,10.0 96,1.0""#),
            "{drawn}"
        );
        assert_eq!(sparkline(&[]).into_string(), "");
        assert_eq!(sparkline(&[(1.0, 1)]).into_string(), "");
    }
}
