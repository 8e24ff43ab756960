//! A report as one HTML page that needs nothing else: verdicts, pictures, figures, the environment, the command that
//! repeats it. `runs` writes it.

use std::fmt::Write as _;

use crate::charts::Chart;
use crate::report::Report;
use crate::statistics::in_order;
use crate::table::medians;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}\
table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{border-bottom:1px solid #ddd;padding:.2rem .8rem .2rem 0;\
text-align:left;vertical-align:top}pre{background:#f5f5f5;padding:.8rem;overflow-x:auto;white-space:pre-wrap}\
.good{color:#176b2c}.bad{color:#a11}svg{max-width:100%;height:auto}h2{margin-top:2.5rem}";

/// The page.
pub(crate) fn page(reports: &[Report], charts: &[Chart]) -> String {
    let mut out = String::from("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    let title = reports.first().map_or("roomwire-bench".to_owned(), |report| format!("roomwire-bench {}", report.run));
    let _ = write!(out, "<title>{0}</title><style>{STYLE}</style></head><body>\n<h1>{0}</h1>\n", escaped(&title));
    let failures = reports.iter().filter(|report| report.is_failure()).count();
    let (class, verdict) = if failures == 0 {
        let beyond = reports.iter().filter(|report| !report.beyond_knee.is_empty()).count();
        ("good", format!("{} runs valid, every ledger clean; {beyond} steps beyond the knee", reports.len() - beyond))
    } else {
        ("bad", format!("{failures} of {} runs are invalid or void", reports.len()))
    };
    let _ = writeln!(out, "<p class=\"{class}\">{verdict}</p>");
    out.push_str("<h2>Medians</h2>\n<table>\n");
    for (at, row) in medians(reports).iter().enumerate() {
        let cell = if at == 0 { "th" } else { "td" };
        let cells: String = row.iter().map(|text| format!("<{cell}>{}</{cell}>", escaped(text))).collect();
        let _ = writeln!(out, "<tr>{cells}</tr>");
    }
    out.push_str("</table>\n");
    for chart in charts {
        let _ = writeln!(out, "<figure id=\"{}\">{}</figure>", chart.name, chart.svg);
    }
    for report in reports {
        run(&mut out, report);
    }
    environments(&mut out, reports);
    out.push_str("</body></html>\n");
    out
}

fn run(out: &mut String, report: &Report) {
    let _ = writeln!(out, "<h2>{} ({})</h2>\n<table>", escaped(&report.scenario), escaped(&report.label));
    for (name, value) in report.rows() {
        let _ = writeln!(out, "<tr><td>{}</td><td>{}</td></tr>", escaped(name), escaped(&value));
    }
    out.push_str("</table>\n");
    let verdicts = [("not sustained", &report.beyond_knee), ("invalid", &report.invalid), ("void", &report.void)];
    for (word, reasons) in verdicts {
        for reason in reasons {
            let _ = writeln!(out, "<p class=\"bad\">{word}: {}</p>", escaped(reason));
        }
    }
    if report.is_good() {
        out.push_str("<p class=\"good\">valid</p>\n");
    }
}

/// Where the runs were made. Servers have settings of their own; of several commands each stands once.
fn environments(out: &mut String, reports: &[Report]) {
    let Some(first) = reports.first() else { return };
    out.push_str("<h2>Environment</h2>\n<table>\n");
    for (name, value) in first.environment.rows() {
        let _ = writeln!(out, "<tr><td>{name}</td><td>{}</td></tr>", escaped(&value));
    }
    let settings = |report: &Report| format!("{}: {}", report.label, report.environment.server_config);
    for server in each_once(reports.iter().filter(|one| !one.environment.server_config.is_empty()).map(settings)) {
        let _ = writeln!(out, "<tr><td>server</td><td>{}</td></tr>", escaped(&server));
    }
    out.push_str("</table>\n<h2>To repeat it</h2>\n");
    for command in each_once(reports.iter().map(|report| report.environment.command())) {
        let _ = writeln!(out, "<pre>{}</pre>", escaped(&command));
    }
}

fn each_once(texts: impl Iterator<Item = String>) -> Vec<String> {
    let texts: Vec<String> = texts.collect();
    in_order(texts.iter().map(String::as_str)).into_iter().map(str::to_owned).collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::charts;
    use crate::report::tests::report;

    #[test]
    fn a_page_holds_everything_and_asks_for_nothing() {
        let mut one = report("fanout", 10.0, 2.0);
        one.label = "<script>".into();
        one.environment.command_line = vec!["roomwire-bench".into(), "fanout".into(), "--spawn".into(), "a b".into()];
        let reports = [one];
        let page = page(&reports, &charts::of(&reports).expect("draws"));
        assert!(page.contains("<svg") && page.contains("P99 10.00") && page.contains("1 runs valid"), "{page}");
        assert!(page.contains("<td>fanout</td><td>CPU per arrival, us</td><td>2.00</td>"), "{page}");
        assert!(
            page.contains("roomwire-bench fanout --spawn &#39;a b&#39;") || page.contains("--spawn 'a b'"),
            "{page}"
        );
        assert!(!page.contains("<script") && !page.contains("http://www.example") && !page.contains("src="), "{page}");
    }

    #[test]
    fn a_void_run_is_told_first() {
        let void = Report { void: vec!["3 lost".into()], ..report("fanout", 10.0, 2.0) };
        let page = page(&[void], &[]);
        assert!(page.contains("1 of 1 runs are invalid or void") && page.contains("void: 3 lost"));
    }
}
