//! The pictures of a report as SVG: percentile curves on a log axis, latency against rate, memory against connections
//! with its slope, CPU against rate. `html` puts them on its page, `runs` writes them as files.

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use crate::histogram::Percentiles;
use crate::plan::Pace;
use crate::report::{Report, ServerFigures};
use crate::statistics::{in_order, line, median};
use crate::timed::Timed;

const WIDTH: u32 = 860;
const HEIGHT: u32 = 480;
/// More lines than this make a picture that nobody can read.
const LINES_MAX: usize = 14;

/// One picture.
pub(crate) struct Chart {
    /// A file's name without its ending.
    pub(crate) name: String,
    pub(crate) svg: String,
}

struct Series {
    name: String,
    points: Vec<(f64, f64)>,
}

struct Picture {
    name: String,
    title: String,
    x_title: &'static str,
    y_title: &'static str,
    series: Vec<Series>,
    x_label: fn(&f64) -> String,
    /// Whether both axes are logarithmic.
    is_log: bool,
}

/// All pictures that `reports` have points for.
pub(crate) fn of(reports: &[Report]) -> Result<Vec<Chart>> {
    let mut pictures = percentiles(reports);
    pictures.extend([latency_by_rate(reports), memory_by_connections(reports), cpu_by_rate(reports)]);
    let mut charts = Vec::new();
    for mut picture in pictures {
        picture.series.retain(|series| !series.points.is_empty());
        picture.series.truncate(LINES_MAX);
        if picture.series.is_empty() {
            continue;
        }
        let axis = |of: fn(&(f64, f64)) -> f64| bounds(&picture, of);
        let (x, y) = (axis(|point| point.0), axis(|point| point.1));
        let svg = if picture.is_log {
            draw(&picture, (x.0..x.1).log_scale(), (y.0..y.1).log_scale())
        } else {
            draw(&picture, x.0..x.1, y.0..y.1)
        };
        charts.push(Chart { name: picture.name, svg: svg? });
    }
    Ok(charts)
}

/// One picture for each scenario where several servers did it, else one of all scenarios. Of several rounds the one with
/// the median P99 is drawn.
fn percentiles(reports: &[Report]) -> Vec<Picture> {
    let of_curves = || {
        let is_drawn = |report: &&Report| report.is_good() && report.beyond_knee.is_empty();
        reports.iter().filter(is_drawn).filter(|report| report.curves.contains_key(&Timed::Delivery))
    };
    let picture = |name: String, title: String, series| Picture {
        name,
        title,
        x_title: "percentile",
        y_title: "ms",
        series,
        x_label: percentile_label,
        is_log: true,
    };
    // The steps of `latency` have a picture of their own, unless they are all there is.
    let only_steps = of_curves().all(|report| report.run == "latency");
    let drawn = || of_curves().filter(|report| only_steps || report.run != "latency");
    let scenarios = in_order(drawn().map(|report| &*report.scenario));
    let labels = |scenario: &str| {
        in_order(drawn().filter(|report| report.scenario == scenario).map(|report| &*report.label)).len()
    };
    if only_steps || scenarios.iter().all(|scenario| labels(scenario) < 2) {
        let name = |report: &Report| match (only_steps, report.shape.messages_per_second) {
            (true, rate) => format!("{}, {rate:.0}/s", report.label),
            (false, rate) => format!("{}, {rate:.0}/s", report.scenario),
        };
        let series = curves(drawn(), name);
        return vec![picture("percentiles".into(), "Publish to arrival, by percentile".into(), series)];
    }
    let one = |scenario: &&str| {
        let series = curves(of_curves().filter(|report| report.scenario == *scenario), |report| report.label.clone());
        picture(
            format!("percentiles-{}", file_name(scenario)),
            format!("{scenario}: publish to arrival, by percentile"),
            series,
        )
    };
    scenarios.iter().map(one).collect()
}

/// A scenario may be called anything.
fn file_name(scenario: &str) -> String {
    scenario.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect()
}

/// The axis is 1 / (1 - quantile): each nine is as wide as the one before.
fn percentile_label(x: &f64) -> String {
    let percent = 100.0 - 100.0 / x;
    let digits = (x.log10().round() as usize).saturating_sub(2);
    format!("{percent:.digits$} %")
}

/// A curve for each name.
fn curves<'a>(reports: impl Iterator<Item = &'a Report>, name: impl Fn(&Report) -> String) -> Vec<Series> {
    let mut named: Vec<(String, Vec<&Report>)> = Vec::new();
    for report in reports {
        let name = name(report);
        match named.iter_mut().find(|(known, _)| *known == name) {
            Some((_, rounds)) => rounds.push(report),
            None => named.push((name, vec![report])),
        }
    }
    let p99_ms = |report: &&Report| report.delivery.map_or(0.0, |at| at.p99_ms);
    let curve = |(name, mut rounds): (String, Vec<&Report>)| {
        rounds.sort_by(|one, other| p99_ms(one).total_cmp(&p99_ms(other)));
        let median = rounds[(rounds.len() - 1) / 2];
        // The maximum has no place on the axis, so it stands where one more sample would.
        let count = median.delivery.map_or(1, |at| at.count) as f64;
        let point = |(quantile, ms): &(f64, f64)| ((1.0 / (1.0 - quantile)).min(count + 1.0), *ms);
        Series { name, points: median.curves.get(&Timed::Delivery).into_iter().flatten().map(point).collect() }
    };
    named.into_iter().map(curve).collect()
}

/// The steps of `latency` by label, each with the reports of its rounds, from the lowest rate to the highest.
fn steps(reports: &[Report]) -> Vec<(&str, Vec<Vec<&Report>>)> {
    let steps = || reports.iter().filter(|report| report.run == "latency" && report.shape.pace == Pace::Open);
    let of_label = |label: &str| {
        let mut own: Vec<&Report> = steps().filter(|report| report.label == label).collect();
        own.sort_by(|one, other| one.shape.messages_per_second.total_cmp(&other.shape.messages_per_second));
        let same_rate =
            |one: &&Report, other: &&Report| one.shape.messages_per_second == other.shape.messages_per_second;
        own.chunk_by(same_rate).map(<[&Report]>::to_vec).collect()
    };
    in_order(steps().map(|report| &*report.label)).into_iter().map(|label| (label, of_label(label))).collect()
}

/// A point for each step: medians over its rounds.
fn points(steps: &[Vec<&Report>], x: fn(&Report) -> f64, y: impl Fn(&Report) -> Option<f64>) -> Vec<(f64, f64)> {
    let point = |rounds: &Vec<&Report>| {
        let ys: Vec<f64> = rounds.iter().filter_map(|report| y(report)).collect();
        let xs: Vec<f64> = rounds.iter().map(|report| x(report)).collect();
        Some((median(&xs)?, median(&ys)?))
    };
    steps.iter().filter_map(point).collect()
}

fn latency_by_rate(reports: &[Report]) -> Picture {
    let mut series = Vec::new();
    for (label, steps) in steps(reports) {
        let mut add = |name: &str, of: fn(Percentiles) -> f64| {
            let rate = |report: &Report| report.shape.messages_per_second;
            let points = points(&steps, rate, |report| report.delivery.map(of));
            series.push(Series { name: format!("{label}, {name}"), points });
        };
        add("P50", |at| at.p50_ms);
        add("P99", |at| at.p99_ms);
    }
    Picture {
        name: "latency-by-rate".into(),
        title: "Publish to arrival against rate".into(),
        x_title: "messages per second",
        y_title: "ms",
        series,
        x_label: |x| format!("{x:.0}"),
        is_log: true,
    }
}

fn cpu_by_rate(reports: &[Report]) -> Picture {
    let of_label = |(label, steps): (&str, Vec<Vec<&Report>>)| {
        let rate = |report: &Report| report.load.arrived_per_second;
        let points = points(&steps, rate, |report| Some(report.server.as_ref()?.cpu_share * 100.0));
        Series { name: label.to_owned(), points }
    };
    Picture {
        name: "cpu-by-rate".into(),
        title: "Server CPU against rate".into(),
        x_title: "deliveries per second",
        y_title: "% of a core",
        series: steps(reports).into_iter().map(of_label).collect(),
        x_label: |x| format!("{x:.0}"),
        is_log: false,
    }
}

/// Runs that joined rooms hold more for each connection and are lines of their own.
fn memory_by_connections(reports: &[Report]) -> Picture {
    let idle = || reports.iter().filter(|report| report.run == "idle" && report.is_good() && report.server.is_some());
    let name = |report: &Report| match report.scenario.as_str() {
        "idle" => report.label.clone(),
        scenario => format!("{}, {scenario}", report.label),
    };
    let names: Vec<String> = idle().map(name).collect();
    let line_of = |name_of_line: &str| {
        let own = || idle().filter(|report| name(report) == name_of_line);
        let mut counts: Vec<u32> = own().map(|report| report.shape.connections).collect();
        counts.sort_unstable();
        counts.dedup();
        let mib = |bytes: fn(&ServerFigures) -> u64, count: Option<u32>| {
            let of_count = own().filter(|report| count.is_none_or(|count| report.shape.connections == count));
            let server = of_count.filter_map(|report| report.server.as_ref());
            median(&server.map(|server| bytes(server) as f64 / f64::from(1 << 20)).collect::<Vec<_>>())
        };
        let point = |count: u32| Some((f64::from(count), mib(|server| server.rss_ready_bytes, Some(count))?));
        let mut points: Vec<(f64, f64)> = counts.iter().filter_map(|count| point(*count)).collect();
        if let ([_], Some(before)) = (counts.as_slice(), mib(|server| server.rss_before_bytes, None)) {
            points.insert(0, (0.0, before));
        }
        let slope = line(&points).map_or(String::new(), |(slope, base)| {
            format!(": {:.0} B per connection, {base:.1} MiB before", slope * f64::from(1 << 20))
        });
        Series { name: format!("{name_of_line}{slope}"), points }
    };
    Picture {
        name: "memory-by-connections".into(),
        title: "Resident memory against connections".into(),
        x_title: "connections",
        y_title: "MiB",
        series: in_order(names.iter().map(String::as_str)).into_iter().map(line_of).collect(),
        x_label: |x| format!("{x:.0}"),
        is_log: false,
    }
}

/// From where to where an axis goes.
fn bounds(picture: &Picture, of: fn(&(f64, f64)) -> f64) -> (f64, f64) {
    let values = picture.series.iter().flat_map(|series| &series.points).map(of);
    let (low, high) = values.fold((f64::INFINITY, 0.0), |(low, high), value: f64| (value.min(low), value.max(high)));
    // An axis wants some length, and a log axis no zero.
    // Whole decades, so that every log axis has marks to read by.
    let decade = |value: f64, up: bool| 10_f64.powf(if up { value.log10().ceil() } else { value.log10().floor() });
    if picture.is_log {
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
        let names =
            |reports: &[Report]| of(reports).expect("draws").into_iter().map(|chart| chart.name).collect::<Vec<_>>();
        let mut steps = vec![report("latency", 10.0, 2.0), report("latency", 20.0, 2.0)];
        steps[1].shape.messages_per_second = 2_000.0;
        assert_eq!(names(&steps), ["percentiles", "latency-by-rate", "cpu-by-rate"]);
        let idle = Report { curves: Default::default(), ..report("idle", 1.0, 1.0) };
        assert_eq!(names(&[idle]), ["memory-by-connections"]);
        assert!(names(&[]).is_empty());
    }

    #[test]
    fn servers_share_a_picture_for_each_scenario_and_rounds_a_line() {
        let by = |label: &str, scenario: &str, p99_ms| {
            let report = report("fanout", p99_ms, 1.0);
            Report { label: label.into(), scenario: scenario.into(), ..report }
        };
        let mut reports =
            vec![by("a", "small", 7.0), by("b", "small", 9.0), by("a", "../x", 8.0), by("b", "../x", 6.0)];
        reports.extend([by("a", "small", 3.0), by("a", "small", 5.0)]);
        let pictures = percentiles(&reports);
        let names: Vec<&str> = pictures.iter().map(|picture| picture.name.as_str()).collect();
        assert_eq!(names, ["percentiles-small", "percentiles----x"]);
        let lines: Vec<(&str, f64)> =
            pictures[0].series.iter().map(|one| (one.name.as_str(), one.points[1].1)).collect();
        assert_eq!(lines, [("a", 5.0), ("b", 9.0)], "of three rounds the median");
    }

    #[test]
    fn rounds_of_a_step_are_one_point() {
        let step = |rate, p99_ms| {
            let mut step = report("latency", p99_ms, 1.0);
            step.shape.messages_per_second = rate;
            step
        };
        let reports = [step(2e3, 9.0), step(1e3, 3.0), step(1e3, 7.0), step(1e3, 5.0)];
        let picture = latency_by_rate(&reports);
        assert_eq!(picture.series[1].points, [(1e3, 5.0), (2e3, 9.0)]);
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
        // One count makes a line with what there was before the first connection.
        let mut alone = idle(1_000, 1 << 21);
        alone.server.as_mut().expect("has one").rss_before_bytes = 1 << 20;
        assert_eq!(memory_by_connections(&[alone]).series[0].points, [(0.0, 1.0), (1_000.0, 2.0)]);
    }
}
