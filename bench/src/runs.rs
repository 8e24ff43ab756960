//! The runs, and what they share: rounds, files, the verdict. `main` calls one of them.

pub(crate) mod churn;
pub(crate) mod echo;
pub(crate) mod fanout;
pub(crate) mod floor;
pub(crate) mod idle;
pub(crate) mod latency;
pub(crate) mod mixed;
pub(crate) mod soak;
pub(crate) mod storm;

use anyhow::Result;

use crate::args::Common;
use crate::ask::Ask;
use crate::report::Report;
use crate::{book, charts, html};

/// Seconds of traffic that are not measured, unless the command line says otherwise.
const WARM_UP_SECS: f64 = 2.0;

/// Makes the run as often as was asked, each time with a server of its own.
fn rounds(ask: &Ask<'_>) -> Result<Vec<Report>> {
    (0..ask.common.rounds).map(|_| ask.run()).collect()
}

/// Prints the reports, writes them where asked, and says whether they are good.
fn publish(reports: &[Report], common: &Common) -> Result<bool> {
    for report in reports {
        report.print();
    }
    if let Some(path) = &common.json {
        book::write_json(reports, path)?;
    }
    if let Some(path) = &common.csv {
        book::write(path, &book::csv(reports))?;
    }
    if common.html.is_some() || common.svg.is_some() {
        let charts = charts::of(reports)?;
        if let Some(path) = &common.html {
            book::write(path, &html::page(reports, &charts))?;
        }
        if let Some(folder) = &common.svg {
            for chart in &charts {
                book::write(&folder.join(format!("{}.svg", chart.name)), &chart.svg)?;
            }
        }
    }
    Ok(!reports.iter().any(Report::is_failure))
}
