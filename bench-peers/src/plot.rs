//! The plots: nanoseconds by payload, and percentile curves.

use std::path::Path;

use plotters::prelude::*;

use crate::Result;
use crate::report::Report;

const SIZE: (u32, u32) = (900, 520);
const COLOURS: [RGBColor; 10] = [
    RGBColor(120, 120, 120),
    RGBColor(60, 60, 60),
    RGBColor(214, 39, 40),
    RGBColor(31, 119, 180),
    RGBColor(44, 160, 44),
    RGBColor(255, 127, 14),
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
    RGBColor(227, 119, 194),
    RGBColor(23, 190, 207),
];

struct Curve {
    name: &'static str,
    points: Vec<(f64, f64)>,
}

/// Draws everything that was measured; returns titles and file names.
pub(crate) fn all(report: &Report, dir: &Path, name: &str) -> Result<Vec<(String, String)>> {
    let mut plots = Vec::new();
    for (test, title) in [("append", "Append in bursts"), ("stream", "Streamed between two processes")] {
        let curve = |link| {
            let payloads = report.payloads(test).into_iter();
            let points = payloads.filter_map(|p| Some((p as f64, report.ns(test, p, link)?))).collect();
            Curve { name: link, points }
        };
        let curves: Vec<_> = report.links(test).into_iter().map(curve).filter(|c| c.points.len() > 1).collect();
        let title = format!("{title}: nanoseconds per message by payload in bytes");
        draw(&mut plots, dir, format!("{name}-{test}.svg"), title, &curves, &|bytes| format!("{bytes:.0}"))?;
    }
    for (test, title) in [
        ("single", "Single appends while segments roll"),
        ("one-way, near", "One way between two processes that share a cache"),
        ("one-way, far", "One way between two processes that share none"),
        ("round-trip, near", "Round trip between two processes that share a cache"),
        ("round-trip, far", "Round trip between two processes that share none"),
        ("wake", "Wake of a sleeping process"),
    ] {
        let curve = |link| Curve { name: link, points: percentiles(report, test, link) };
        let curves: Vec<_> = report.links(test).into_iter().map(curve).filter(|c| c.points.len() > 1).collect();
        let title = format!("{title}: nanoseconds by percentile, 64 bytes");
        let percent = |inverse: f64| format!("{}", 100.0 - 100.0 / inverse);
        let file = format!("{name}-{}.svg", test.replace(", ", "-"));
        draw(&mut plots, dir, file, title, &curves, &percent)?;
    }
    Ok(plots)
}

/// Against 1 / (1 - quantile): each nine takes the same width.
fn percentiles(report: &Report, test: &'static str, link: &'static str) -> Vec<(f64, f64)> {
    let Some(rounds) = report.results.get(&(test, 64, link)) else {
        return Vec::new();
    };
    let total: u64 = rounds.values.values().sum();
    let mut points: Vec<(f64, f64)> = Vec::new();
    let mut seen = 0;
    for (&value, &count) in &rounds.values {
        seen += count;
        let left = (total - seen).max(1) as f64 / total as f64;
        let x = 1.0 / left;
        // As many points as can be distinguished.
        if points.last().is_none_or(|last| x > last.0 * 1.01) {
            points.push((x, value.max(1) as f64));
        }
    }
    points
}

fn draw(
    plots: &mut Vec<(String, String)>,
    dir: &Path,
    file: String,
    title: String,
    curves: &[Curve],
    label: &dyn Fn(f64) -> String,
) -> Result<()> {
    let all = || curves.iter().flat_map(|curve| &curve.points);
    if curves.is_empty() {
        return Ok(());
    }
    let least = |pick: fn(&(f64, f64)) -> f64| all().map(pick).fold(f64::MAX, f64::min);
    let most = |pick: fn(&(f64, f64)) -> f64| all().map(pick).fold(1.0, f64::max);
    let (left, right) = (least(|p| p.0), most(|p| p.0));
    let (bottom, top) = (least(|p| p.1) / 1.3, most(|p| p.1) * 1.3);
    let path = dir.join(&file);
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let area = SVGBackend::new(&path, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(|e| failed(&e))?;
    let mut chart = ChartBuilder::on(&area)
        .caption(&title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(32)
        .y_label_area_size(72)
        .build_cartesian_2d((left..right).log_scale(), (bottom..top).log_scale())
        .map_err(|e| failed(&e))?;
    chart
        .configure_mesh()
        .light_line_style(RGBColor(240, 240, 240))
        .x_label_formatter(&|x| label(*x))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .draw()
        .map_err(|e| failed(&e))?;
    for (curve, colour) in curves.iter().zip(COLOURS.iter().cycle()) {
        let line = LineSeries::new(curve.points.iter().copied(), colour.stroke_width(2));
        chart
            .draw_series(line)
            .map_err(|e| failed(&e))?
            .label(curve.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(RGBColor(200, 200, 200))
        .draw()
        .map_err(|e| failed(&e))?;
    area.present().map_err(|e| failed(&e))?;
    plots.push((title, file));
    Ok(())
}
