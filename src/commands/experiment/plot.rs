//! Line plots as SVG text, for experiments and benches.

use std::fmt::Write as _;

const COLORS: [&str; 6] = ["#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a"];

/// The field of the plot in the picture of 800 by 400: left, right, top, bottom.
const FIELD: [f64; 4] = [70.0, 780.0, 40.0, 350.0];

/// A named line.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// What it is.
    pub name: String,
    /// Its points, x first.
    pub points: Vec<(f64, f64)>,
}

/// What stands at the axes, and whether x goes by powers.
#[derive(Clone, Copy, Debug)]
pub struct Axes<'a> {
    /// Over the plot.
    pub title: &'a str,
    /// Below it.
    pub x: &'a str,
    /// Beside it.
    pub y: &'a str,
    /// Equal factors of x are equal distances.
    pub is_log_x: bool,
}

/// The plot of `lines`; y begins at 0.
#[must_use]
pub fn svg(axes: &Axes<'_>, lines: &[Line]) -> String {
    let along = |x: f64| if axes.is_log_x { x.max(1e-9).log10() } else { x };
    let points = || lines.iter().flat_map(|line| &line.points);
    let least = points().map(|(x, _)| along(*x)).fold(f64::MAX, f64::min);
    let from = if axes.is_log_x && least < f64::MAX { least } else { 0.0 };
    let to = points().map(|(x, _)| along(*x)).fold(from + 1e-9, f64::max);
    let top = points().map(|(_, y)| *y).fold(1e-9, f64::max) * 1.05;
    let [left, right, upper, lower] = FIELD;
    let place = |x: f64, y: f64| {
        let across = left + (along(x) - from) / (to - from) * (right - left);
        (across, lower - y / top * (lower - upper))
    };
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 400" font-family="sans-serif" font-size="12"><rect width="800" height="400" fill="white"/><text x="400" y="20" text-anchor="middle" font-size="14">{}</text><text x="425" y="392" text-anchor="middle">{}</text><text transform="translate(14 195) rotate(-90)" text-anchor="middle">{}</text>"#,
        escaped(axes.title),
        escaped(axes.x),
        escaped(axes.y)
    );
    for step in 0..=4 {
        let share = f64::from(step) / 4.0;
        let (y, x) = (lower - share * (lower - upper), left + share * (right - left));
        let value = from + share * (to - from);
        let value = if axes.is_log_x { 10_f64.powf(value) } else { value };
        // Text in memory takes everything.
        let _written = write!(
            svg,
            r##"<path d="M{left} {y}H{right}" stroke="#ddd"/><text x="64" y="{}" text-anchor="end">{:.0}</text><text x="{x}" y="368" text-anchor="middle">{value:.0}</text>"##,
            y + 4.0,
            share * top
        );
    }
    for (number, line) in lines.iter().enumerate() {
        let color = COLORS[number % COLORS.len()];
        let path: Vec<String> = line
            .points
            .iter()
            .map(|(x, y)| place(*x, *y))
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let (y, name) = (54 + 16 * number, escaped(&line.name));
        let _written = write!(
            svg,
            r#"<polyline fill="none" stroke="{color}" stroke-width="1.5" points="{}"/><text x="772" y="{y}" text-anchor="end" fill="{color}">{name}</text>"#,
            path.join(" ")
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_lie_where_their_numbers_say() {
        let axes = Axes { title: "a < b", x: "x", y: "y", is_log_x: true };
        let points = vec![(1.0, 0.0), (10.0, 100.0), (100.0, 50.0)];
        let text = svg(&axes, &[Line { name: "one & two".to_owned(), points }]);
        assert!(text.contains("a &lt; b") && text.contains("one &amp; two"), "{text}");
        let [left, right, upper, lower] = FIELD;
        let high = lower - (lower - upper) / 1.05;
        let middle = (left + right) / 2.0;
        let wanted = format!("{left:.1},{lower:.1} {middle:.1},{high:.1} {right:.1},");
        assert!(text.contains(&wanted), "{wanted} in {text}");
        assert!(svg(&axes, &[]).ends_with("</svg>\n"));
    }
}
