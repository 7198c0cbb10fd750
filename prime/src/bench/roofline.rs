//! The roofline plot: what each call attained over how many operations it does a byte, under what its device can do.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::results::{Case, Machine};
use super::statistics::spread;
use super::text;
use crate::report::encode::html;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 460.0;
/// Room for the axes: left, right, above, below.
const MARGIN: [f64; 4] = [64.0, 24.0, 16.0, 86.0];
/// Colours that remain apart for the colour-blind (Okabe and Ito).
const COLORS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a8a", "#8b6f00"];

/// A place in the plot.
struct Point {
    /// The first word of its operation: forward and backward have one colour.
    kind: String,
    ours: bool,
    title: String,
    /// Operations a byte, and a second.
    at: [f64; 2],
}

/// A picture of the cases of a device, as SVG; nothing where there is nothing to draw.
pub(super) fn picture(machine: &Machine, cases: &[Case]) -> Option<String> {
    let points = points(machine, cases);
    let bytes = machine.ceilings.iter().find(|ceiling| ceiling.what == "bytes")?.rate;
    let roofs: Vec<_> = machine.ceilings.iter().filter(|ceiling| ceiling.what != "bytes").collect();
    if points.is_empty() || roofs.is_empty() {
        return None;
    }
    let bounds = |axis: usize| {
        let values = points.iter().map(|point| point.at[axis].log10());
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)))
    };
    let (x_low, x_high) = bounds(0);
    let (y_low, y_high) = bounds(1);
    let top = roofs.iter().map(|roof| roof.rate.log10()).fold(y_high, f64::max);
    let (x_low, x_high) = (x_low.floor(), x_high.ceil().max(x_low.floor() + 1.0));
    let (y_low, y_high) = (y_low.floor(), (top + 0.1).max(y_low.floor() + 1.0));
    let [left, right, above, below] = MARGIN;
    let (across, down) = (WIDTH - left - right, HEIGHT - above - below);
    let x = |value: f64| left + across * (value.log10() - x_low) / (x_high - x_low);
    let y = |value: f64| above + down * (1.0 - (value.log10() - y_low) / (y_high - y_low));
    let foot = HEIGHT - below;
    let legend = legend(&points, [left, foot + 56.0]);

    let mut out = format!(
        "<svg class=\"picture\" viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" font-family=\"system-ui, sans-serif\" font-size=\"12\">\n\
         <title>roofline of {}</title>\n<g fill=\"currentColor\" stroke=\"none\">\n",
        legend[legend.len() - 1].at[1] + 10.0,
        html(&machine.device)
    );
    for power in x_low as i32..=x_high as i32 {
        let at = x(10f64.powi(power));
        let _ = writeln!(
            out,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{above}\" y2=\"{foot}\" stroke=\"currentColor\" stroke-opacity=\"0.15\"/><text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            foot + 16.0,
            power_text(power),
        );
    }
    for power in y_low as i32..=y_high as i32 {
        let at = y(10f64.powi(power));
        let _ = writeln!(
            out,
            "<line x1=\"{left}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"currentColor\" stroke-opacity=\"0.15\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - right,
            left - 6.0,
            at + 4.0,
            power_of_rate(power),
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">floating-point operations a byte</text>\n<text transform=\"translate(12 {:.1}) rotate(-90)\" text-anchor=\"middle\">FLOP/s</text>\n</g>",
        left + across / 2.0,
        foot + 34.0,
        above + down / 2.0
    );
    for roof in &roofs {
        let corner = (roof.rate / bytes).clamp(10f64.powf(x_low), 10f64.powf(x_high));
        // The slope begins where it enters the plot.
        let start = (10f64.powf(y_low) / bytes).max(10f64.powf(x_low)).min(corner);
        let _ = writeln!(
            out,
            "<polyline points=\"{:.1},{:.1} {:.1},{:.1} {:.1},{:.1}\" fill=\"none\" stroke=\"currentColor\" stroke-opacity=\"0.6\"><title>{}: {}; memory: {}</title></polyline><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"currentColor\">{}</text>",
            x(start),
            y((start * bytes).min(roof.rate)),
            x(corner),
            y((corner * bytes).min(roof.rate)),
            WIDTH - right,
            y(roof.rate),
            html(&roof.what),
            text::rate(roof.rate, "FLOP"),
            text::rate(bytes, "byte"),
            WIDTH - right - 4.0,
            y(roof.rate) - 4.0,
            html(&format!("{}, {}", roof.what, text::rate(roof.rate, "FLOP")))
        );
    }
    // The slope's rate stands above it, near the corner, where points are few.
    let corner = roofs.iter().map(|roof| roof.rate / bytes).fold(0.0, f64::max);
    let corner = corner.clamp(10f64.powf(x_low), 10f64.powf(x_high));
    let start = (10f64.powf(y_low) / bytes).max(10f64.powf(x_low)).min(corner);
    let place = corner.powf(0.8) * start.powf(0.2);
    let slope = (down / (y_high - y_low)).atan2(across / (x_high - x_low)).to_degrees();
    let _ = writeln!(
        out,
        "<text transform=\"translate({:.1} {:.1}) rotate({:.1})\" text-anchor=\"middle\" fill=\"currentColor\">memory, {}</text>",
        x(place) - 8.0,
        y(place * bytes) - 8.0,
        -slope,
        text::rate(bytes, "byte")
    );
    for point in &points {
        let Some(&Entry { color, shape, .. }) =
            legend.iter().find(|entry| entry.kind == point.kind)
        else {
            continue;
        };
        let fill = if point.ours { color } else { "none" };
        let _ = writeln!(
            out,
            "<path d=\"{}\" fill=\"{fill}\" fill-opacity=\"0.75\" stroke=\"{color}\"><title>{}</title></path>",
            shape.at([x(point.at[0]), y(point.at[1])]),
            html(&point.title)
        );
    }
    for Entry { kind, color, shape, at: [x, y] } in &legend {
        let _ = writeln!(
            out,
            "<path d=\"{}\" fill=\"{color}\"/><text x=\"{:.1}\" y=\"{y:.1}\" fill=\"currentColor\">{}</text>",
            shape.at([x + 4.0, y - 4.0]),
            x + 12.0,
            html(kind)
        );
    }
    out.push_str("</svg>\n");
    Some(out)
}

/// What tells points apart where colours run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Disk,
    Square,
    Triangle,
    Diamond,
}

const SHAPES: [Shape; 4] = [Shape::Disk, Shape::Square, Shape::Triangle, Shape::Diamond];

impl Shape {
    /// The path of one around a place.
    fn at(self, [x, y]: [f64; 2]) -> String {
        match self {
            Shape::Disk => format!("M{:.1} {y:.1}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z", x - 4.0),
            Shape::Square => format!("M{:.1} {:.1}h7v7h-7z", x - 3.5, y - 3.5),
            Shape::Triangle => format!("M{x:.1} {:.1}l4.5 8h-9z", y - 4.5),
            Shape::Diamond => format!("M{x:.1} {:.1}l5 5l-5 5l-5 -5z", y - 5.0),
        }
    }
}

/// What a colour and a shape stand for, and where that is said.
struct Entry {
    kind: String,
    color: &'static str,
    shape: Shape,
    at: [f64; 2],
}

/// The kinds of operations in lines that fit below the plot.
fn legend(points: &[Point], [left, top]: [f64; 2]) -> Vec<Entry> {
    let kinds: BTreeSet<&String> = points.iter().map(|point| &point.kind).collect();
    let mut at = [left, top];
    let mut entries = Vec::new();
    for (index, kind) in kinds.into_iter().enumerate() {
        // As wide as the letters of the system's font are on average.
        let wide = 24.0 + 6.4 * kind.chars().count() as f64;
        if at[0] + wide > WIDTH - MARGIN[1] {
            at = [left, at[1] + 16.0];
        }
        let (color, shape) =
            (COLORS[index % COLORS.len()], SHAPES[index / COLORS.len() % SHAPES.len()]);
        entries.push(Entry { kind: kind.clone(), color, shape, at });
        at[0] += wide;
    }
    entries
}

fn points(machine: &Machine, cases: &[Case]) -> Vec<Point> {
    let mut points = Vec::new();
    let drawn =
        |case: &&Case| case.device == machine.device && case.flops > 0.0 && case.bytes > 0.0;
    for case in cases.iter().filter(drawn) {
        for contestant in &case.contestants {
            let Some(time) = spread(&contestant.seconds).filter(|time| time.median > 0.0) else {
                continue;
            };
            let rate = case.flops / time.median;
            points.push(Point {
                kind: case.operation.split([' ', ',']).next().unwrap_or_default().to_owned(),
                ours: contestant.ours,
                title: format!(
                    "{}: {}, {}: {}, {}",
                    contestant.name,
                    case.operation,
                    case.title(),
                    text::seconds(time.median),
                    text::rate(rate, "FLOP")
                ),
                at: [case.flops / case.bytes, rate],
            });
        }
    }
    points
}

/// `10 G` of 10^10.
fn power_of_rate(power: i32) -> String {
    let (number, prefix) = text::scaled(10f64.powi(power));
    let number = number.split_once('.').map_or(number.as_str(), |(whole, _)| whole);
    format!("{number} {prefix}").trim_end().to_owned()
}

fn power_text(power: i32) -> String {
    if (-2..=4).contains(&power) { format!("{}", 10f64.powi(power)) } else { format!("1e{power}") }
}

#[cfg(test)]
mod tests {
    use super::super::change::tests::results;
    use super::super::results::Ceiling;
    use super::*;

    #[test]
    fn every_contestant_is_a_point_under_the_roofs_and_names_are_escaped() {
        let mut results = results("m", &[1e-5], &[2e-5]);
        results.cases[0].name = "<b>".into();
        let ceiling = |what: &str, rate| Ceiling { what: what.into(), rate, how: String::new() };
        results.machines[0].ceilings = vec![ceiling("bytes", 4e10), ceiling("f32", 4e11)];
        let drawn = picture(&results.machines[0], &results.cases).unwrap();
        // Two points and one entry of the legend.
        assert_eq!(drawn.matches("<path").count(), 3);
        assert_eq!(drawn.matches("<polyline").count(), 1);
        assert!(drawn.contains("&lt;b&gt;") && !drawn.contains("<b>"));
        assert!(!drawn.contains("NaN") && !drawn.contains("inf"));
        results.machines[0].ceilings.clear();
        assert!(picture(&results.machines[0], &results.cases).is_none());
    }

    #[test]
    fn every_kind_of_operation_has_a_mark_of_its_own() {
        let point = |index: usize| Point {
            kind: format!("kind-{index:02}"),
            ours: true,
            title: String::new(),
            at: [1.0, 1.0],
        };
        let points: Vec<Point> = (0..COLORS.len() * SHAPES.len()).map(point).collect();
        let entries = legend(&points, [0.0, 0.0]);
        let marks: BTreeSet<String> =
            entries.iter().map(|entry| format!("{} {:?}", entry.color, entry.shape)).collect();
        assert_eq!(marks.len(), points.len());
    }

    #[test]
    fn rates_on_the_axis_are_whole_numbers() {
        let shown = [-1, 0, 8, 9, 10, 11, 12, 15].map(power_of_rate);
        assert_eq!(shown, ["100 m", "1", "100 M", "1 G", "10 G", "100 G", "1 T", "1000 T"]);
    }
}
