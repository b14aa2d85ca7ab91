//! Line plots as SVG, written into the build folder.
#![allow(dead_code, reason = "not every bench uses all of it")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const COLORS: [&str; 6] = ["#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a"];

/// The field of the plot in the picture of 800 by 400: left, right, top, bottom.
const FIELD: [f64; 4] = [70.0, 780.0, 40.0, 350.0];

/// A named line.
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// What stands at the axes, and whether x goes by powers of ten.
pub struct Axes<'a> {
    pub title: &'a str,
    pub x: &'a str,
    pub y: &'a str,
    pub is_log_x: bool,
}

/// Writes `name` into the build folder; y begins at 0.
pub fn write(name: &str, axes: &Axes<'_>, lines: &[Line]) -> PathBuf {
    let along = |x: f64| if axes.is_log_x { x.max(1e-9).log10() } else { x };
    let points = || lines.iter().flat_map(|line| &line.points);
    let from =
        if axes.is_log_x { points().map(|(x, _)| along(*x)).fold(f64::MAX, f64::min) } else { 0.0 };
    let to = points().map(|(x, _)| along(*x)).fold(from + 1e-9, f64::max);
    let top = points().map(|(_, y)| *y).fold(1e-9, f64::max) * 1.05;
    let [left, right, upper, lower] = FIELD;
    let place = |x: f64, y: f64| {
        let across = left + (along(x) - from) / (to - from) * (right - left);
        (across, lower - y / top * (lower - upper))
    };
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 400" font-family="sans-serif" font-size="12"><rect width="800" height="400" fill="white"/><text x="400" y="20" text-anchor="middle" font-size="14">{}</text><text x="425" y="392" text-anchor="middle">{}</text><text transform="translate(14 195) rotate(-90)" text-anchor="middle">{}</text>"#,
        axes.title, axes.x, axes.y
    );
    for step in 0..=4 {
        let share = f64::from(step) / 4.0;
        let (y, x) = (lower - share * (lower - upper), left + share * (right - left));
        let value = from + share * (to - from);
        let value = if axes.is_log_x { 10_f64.powf(value) } else { value };
        write!(svg, r##"<path d="M{left} {y}H{right}" stroke="#ddd"/><text x="64" y="{}" text-anchor="end">{:.0}</text><text x="{x}" y="368" text-anchor="middle">{value:.0}</text>"##, y + 4.0, share * top).unwrap();
    }
    for (number, line) in lines.iter().enumerate() {
        let color = COLORS[number % COLORS.len()];
        let path: Vec<String> = line
            .points
            .iter()
            .map(|(x, y)| place(*x, *y))
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let y = 54 + 16 * number;
        write!(svg, r#"<polyline fill="none" stroke="{color}" stroke-width="1.5" points="{}"/><text x="772" y="{y}" text-anchor="end" fill="{color}">{}</text>"#, path.join(" "), line.name).unwrap();
    }
    svg.push_str("</svg>\n");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let file = folder.join(name);
    std::fs::write(&file, svg).unwrap();
    file
}
