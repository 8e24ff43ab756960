//! `floor`: a fan-out through a server that does nothing else, as the limit to read other figures against.

use anyhow::{Context as _, Result};

use super::fanout;
use crate::args::Floor;
use crate::dialect::Dialect;
use crate::report::Report;

pub(crate) fn measure(floor: &Floor) -> Result<Vec<Report>> {
    let Floor { floor_addr, mut fanout } = floor.clone();
    let own = std::env::current_exe().context("cannot find this program")?;
    let own = own.to_str().context("the path of this program is not UTF-8")?.replace('\'', r"'\''");
    let common = &mut fanout.common;
    common.addr = vec![floor_addr];
    common.pid.clear();
    common.spawn = vec![format!("'{own}' floor-server {floor_addr}")];
    common.dialect = Dialect::Plain;
    common.label.get_or_insert_with(|| "floor".into());
    common.scenario.get_or_insert_with(|| "floor".into());
    fanout::measure(&fanout)
}
