//! The runs, and what they share: rounds, files, the verdict. `main` calls one of them, `compare` and `suite` many.

pub(crate) mod churn;
pub(crate) mod echo;
pub(crate) mod fanout;
pub(crate) mod floor;
pub(crate) mod history;
pub(crate) mod idle;
pub(crate) mod latency;
pub(crate) mod mixed;
pub(crate) mod soak;
pub(crate) mod storm;

use anyhow::{Result, bail};

use crate::args::{Merge, Outputs, Run};
use crate::ask::Ask;
use crate::report::Report;
use crate::{book, charts, html};

/// Makes the run of the command line, prints and writes its reports, and says whether they are good.
pub(crate) fn run(run: &Run) -> Result<bool> {
    let reports = measure(run)?;
    for report in &reports {
        report.print();
    }
    write(&reports, &run.common().outputs)?;
    let sustains_nothing = reports.first().is_some_and(|lowest| !lowest.beyond_knee.is_empty());
    Ok(!sustains_nothing && !reports.iter().any(Report::is_failure))
}

/// Makes the run.
pub(crate) fn measure(run: &Run) -> Result<Vec<Report>> {
    match run {
        Run::Idle(idle) => idle::measure(idle),
        Run::Fanout(fanout) => fanout::measure(fanout),
        Run::Echo(echo) => echo::measure(echo),
        Run::Latency(latency) => latency::measure(latency),
        Run::Storm(storm) => storm::measure(storm),
        Run::Churn(churn) => churn::measure(churn),
        Run::History(history) => history::measure(history),
        Run::Mixed(mixed) => mixed::measure(mixed),
        Run::Floor(floor) => floor::measure(floor),
        Run::Soak(soak) => soak::measure(soak),
    }
}

/// Makes the run as often as was asked, each time with a server of its own.
fn rounds(ask: &Ask<'_>) -> Result<Vec<Report>> {
    (0..ask.common.rounds).map(|_| ask.run()).collect()
}

/// Makes one report of several files, and says whether all of it is good.
pub(crate) fn merge(merge: &Merge) -> Result<bool> {
    let Outputs { json, csv, html, svg } = &merge.outputs;
    if json.is_none() && csv.is_none() && html.is_none() && svg.is_none() {
        bail!("say what to make: --json, --csv, --html or --svg");
    }
    let reports = merge.files.iter().map(|path| book::read_json(path)).collect::<Result<Vec<_>>>()?.concat();
    write(&reports, &merge.outputs)?;
    Ok(!reports.iter().any(Report::is_failure))
}

/// Writes the reports where asked.
pub(crate) fn write(reports: &[Report], outputs: &Outputs) -> Result<()> {
    let Outputs { json, csv, html, svg } = outputs;
    if let Some(path) = json {
        book::write_json(reports, path)?;
    }
    if let Some(path) = csv {
        book::write(path, &book::csv(reports))?;
    }
    if html.is_some() || svg.is_some() {
        let charts = charts::of(reports)?;
        if let Some(path) = html {
            book::write(path, &html::page(reports, &charts))?;
        }
        if let Some(folder) = svg {
            for chart in &charts {
                book::write(&folder.join(format!("{}.svg", chart.name)), &chart.svg)?;
            }
        }
    }
    Ok(())
}
