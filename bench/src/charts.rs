//! The pictures of a report as SVG: percentile curves on a log axis, latency against rate, memory against connections
//! with its slope, CPU against rate. `html` puts them on its page, `runs` writes them as files.

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use crate::plan::Pace;
use crate::report::Report;
use crate::statistics::line;
use crate::timed::Timed;

const WIDTH: u32 = 860;
const HEIGHT: u32 = 480;
/// More lines than this make a picture that nobody can read.
const LINES_MAX: usize = 10;

/// One picture.
pub(crate) struct Chart {
    /// A file's name without its ending.
    pub(crate) name: &'static str,
    pub(crate) svg: String,
}

struct Series {
    name: String,
    points: Vec<(f64, f64)>,
}

struct Picture {
    title: String,
    x_title: &'static str,
    y_title: &'static str,
    series: Vec<Series>,
    x_label: fn(&f64) -> String,
}

/// All pictures that `reports` have points for.
pub(crate) fn of(reports: &[Report]) -> Result<Vec<Chart>> {
    let mut charts = Vec::new();
    let pictures = [
        ("percentiles", percentiles(reports), true, true),
        ("latency-by-rate", latency_by_rate(reports), true, true),
        ("memory-by-connections", memory_by_connections(reports), false, false),
        ("cpu-by-rate", cpu_by_rate(reports), false, false),
    ];
    for (name, mut picture, log_x, log_y) in pictures {
        picture.series.retain(|series| !series.points.is_empty());
        picture.series.truncate(LINES_MAX);
        if picture.series.is_empty() {
            continue;
        }
        let [x, y] = [bounds(&picture, |point| point.0, log_x), bounds(&picture, |point| point.1, log_y)];
        let svg = match (log_x, log_y) {
            (true, true) => draw(&picture, (x.0..x.1).log_scale(), (y.0..y.1).log_scale()),
            _ => draw(&picture, x.0..x.1, y.0..y.1),
        };
        charts.push(Chart { name, svg: svg? });
    }
    Ok(charts)
}

fn percentiles(reports: &[Report]) -> Picture {
    let curve = |report: &Report| {
        let curve = report.curves.get(&Timed::Delivery)?;
        // The axis is 1 / (1 - quantile): each nine is as wide as the one before. The maximum has no place on it, so it
        // stands where one more sample would.
        let count = report.delivery.map_or(1, |at| at.count) as f64;
        let points = curve.iter().map(|(quantile, ms)| ((1.0 / (1.0 - quantile)).min(count + 1.0), *ms)).collect();
        let rate = report.shape.messages_per_second;
        Some(Series { name: format!("{}, {}, {rate:.0}/s", report.label, report.scenario), points })
    };
    Picture {
        title: "Publish to arrival, by percentile".into(),
        x_title: "percentile",
        y_title: "ms",
        series: reports.iter().filter(|report| report.beyond_knee.is_empty()).filter_map(curve).collect(),
        x_label: |x| {
            let percent = 100.0 - 100.0 / x;
            let digits = (x.log10().round() as usize).saturating_sub(2);
            format!("{percent:.digits$} %")
        },
    }
}

/// The steps of `latency`, by label.
fn steps(reports: &[Report]) -> Vec<(&str, Vec<&Report>)> {
    let mut labels: Vec<(&str, Vec<&Report>)> = Vec::new();
    for report in reports.iter().filter(|report| report.run == "latency" && report.shape.pace == Pace::Open) {
        match labels.iter_mut().find(|(label, _)| *label == report.label) {
            Some((_, steps)) => steps.push(report),
            None => labels.push((&report.label, vec![report])),
        }
    }
    for (_, steps) in &mut labels {
        steps.sort_by(|one, other| one.shape.messages_per_second.total_cmp(&other.shape.messages_per_second));
    }
    labels
}

fn latency_by_rate(reports: &[Report]) -> Picture {
    let mut series = Vec::new();
    for (label, steps) in steps(reports) {
        let at = |of: fn(&crate::histogram::Percentiles) -> f64| {
            let point = |report: &&Report| Some((report.shape.messages_per_second, of(report.delivery.as_ref()?)));
            steps.iter().filter_map(point).collect::<Vec<_>>()
        };
        series.push(Series { name: format!("{label}, P50"), points: at(|at| at.p50_ms) });
        series.push(Series { name: format!("{label}, P99"), points: at(|at| at.p99_ms) });
    }
    Picture {
        title: "Publish to arrival against rate".into(),
        x_title: "messages per second",
        y_title: "ms",
        series,
        x_label: |x| format!("{x:.0}"),
    }
}

fn cpu_by_rate(reports: &[Report]) -> Picture {
    let mut series = Vec::new();
    for (label, steps) in steps(reports) {
        let point =
            |report: &&Report| Some((report.load.arrived_per_second, report.server.as_ref()?.cpu_share * 100.0));
        series.push(Series { name: label.to_owned(), points: steps.iter().filter_map(point).collect() });
    }
    Picture {
        title: "Server CPU against rate".into(),
        x_title: "deliveries per second",
        y_title: "% of a core",
        series,
        x_label: |x| format!("{x:.0}"),
    }
}

fn memory_by_connections(reports: &[Report]) -> Picture {
    let mut labels: Vec<Series> = Vec::new();
    for report in reports.iter().filter(|report| report.run == "idle" && report.is_good()) {
        let Some(server) = &report.server else { continue };
        let point = (f64::from(report.shape.connections), server.rss_ready_bytes as f64 / f64::from(1 << 20));
        match labels.iter_mut().find(|series| series.name == report.label) {
            Some(series) => series.points.push(point),
            None => labels.push(Series { name: report.label.clone(), points: vec![point] }),
        }
    }
    for series in &mut labels {
        series.points.sort_by(|one, other| one.0.total_cmp(&other.0));
        if let Some((slope, base)) = line(&series.points) {
            let bytes = slope * f64::from(1 << 20);
            series.name = format!("{}: {bytes:.0} B per connection, {base:.1} MiB before", series.name);
        }
    }
    Picture {
        title: "Resident memory against connections".into(),
        x_title: "connections",
        y_title: "MiB",
        series: labels,
        x_label: |x| format!("{x:.0}"),
    }
}

/// From where to where an axis goes.
fn bounds(picture: &Picture, of: fn(&(f64, f64)) -> f64, log: bool) -> (f64, f64) {
    let values = picture.series.iter().flat_map(|series| &series.points).map(of);
    let (low, high) = values.fold((f64::INFINITY, 0.0), |(low, high), value: f64| (value.min(low), value.max(high)));
    // An axis wants some length, and a log axis no zero.
    // Whole decades, so that every log axis has marks to read by.
    let decade = |value: f64, up: bool| 10_f64.powf(if up { value.log10().ceil() } else { value.log10().floor() });
    if log {
        (decade(low.max(1e-3), false), decade(high.max(1e-3) * 1.01, true))
    } else {
        (0.0, if high > 0.0 { high * 1.1 } else { 1.0 })
    }
}

fn draw<X, Y>(picture: &Picture, x: X, y: Y) -> Result<String>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let mut svg = String::new();
    paint(&mut svg, picture, x, y).map_err(|error| anyhow!("cannot draw {}: {error}", picture.title))?;
    Ok(svg)
}

fn paint<X, Y>(svg: &mut String, picture: &Picture, x: X, y: Y) -> Result<(), Box<dyn std::error::Error>>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let area = SVGBackend::with_string(svg, (WIDTH, HEIGHT)).into_drawing_area();
    area.fill(&WHITE).map_err(|error| error.to_string())?;
    let mut chart = ChartBuilder::on(&area)
        .caption(&picture.title, ("sans-serif", 20))
        .margin(14)
        .x_label_area_size(46)
        .y_label_area_size(64)
        .build_cartesian_2d(x, y)
        .map_err(|error| error.to_string())?;
    chart
        .configure_mesh()
        .x_desc(picture.x_title)
        .y_desc(picture.y_title)
        .light_line_style(TRANSPARENT)
        .x_label_formatter(&picture.x_label)
        .draw()
        .map_err(|error| error.to_string())?;
    for (at, series) in picture.series.iter().enumerate() {
        let color = Palette99::pick(at).to_rgba();
        chart
            .draw_series(LineSeries::new(series.points.iter().copied(), color.stroke_width(2)))
            .map_err(|error| error.to_string())?
            .label(series.name.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        chart
            .draw_series(series.points.iter().map(|point| Circle::new(*point, 2, color.filled())))
            .map_err(|error| error.to_string())?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(|error| error.to_string())?;
    area.present().map_err(|error| error.to_string())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn each_kind_of_run_gets_its_pictures() {
        let names = |reports: &[Report]| of(reports).expect("draws").iter().map(|chart| chart.name).collect::<Vec<_>>();
        let mut steps = vec![report("latency", 10.0, 2.0), report("latency", 20.0, 2.0)];
        steps[1].shape.messages_per_second = 2_000.0;
        assert_eq!(names(&steps), ["percentiles", "latency-by-rate", "cpu-by-rate"]);
        let idle = Report { curves: Default::default(), ..report("idle", 1.0, 1.0) };
        assert_eq!(names(&[idle]), ["memory-by-connections"]);
        assert!(names(&[]).is_empty());
    }

    #[test]
    fn a_picture_names_its_lines_and_the_slope() {
        let idle = |connections: u32, rss: u64| {
            let mut idle = report("idle", 1.0, 1.0);
            idle.shape.connections = connections;
            idle.server.as_mut().expect("has one").rss_ready_bytes = rss;
            idle
        };
        let charts = of(&[idle(1_000, 10_600_000), idle(2_000, 11_200_000)]).expect("draws");
        let memory = charts.iter().find(|chart| chart.name == "memory-by-connections").expect("drawn");
        assert!(memory.svg.starts_with("<svg") && memory.svg.contains("600 B per connection"), "{}", memory.svg);
    }
}
