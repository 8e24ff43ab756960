//! `churn`: members leave, join from where they were, lose their connection and come back, at a fixed rate, while the
//! rooms go on talking.

use anyhow::{Result, bail};

use super::rounds;
use crate::args::Churn;
use crate::ask::{Ask, nanoseconds};
use crate::plan::{Extras, Move};
use crate::report::Report;
use crate::topology::{Rooms, Topology};

pub(crate) fn measure(churn: &Churn) -> Result<Vec<Report>> {
    let Churn { common, load, rooms, members, moves, seconds } = churn;
    if !moves.is_finite() || *moves <= 0.0 {
        bail!("--moves has to be above 0");
    }
    let members = (*members).max(2);
    let rooms = Rooms::Equal { rooms: *rooms, members, publishers: 1 };
    let mut ask = Ask::chatting("churn", common, rooms, load, *seconds);
    ask.extras = Extras {
        moves: vec![Move::Leave, Move::Join, Move::Reconnect],
        move_count: whole_turns(moves * seconds, Topology::connections_of(rooms) / members * (members - 1)),
        move_from_ns: nanoseconds(ask.warm_up),
        move_every_ns: nanoseconds(1.0 / moves),
        ..Extras::default()
    };
    rounds(&ask)
}

/// As many moves as are in whole turns of leave, join and reconnect over all `movers`, at least one turn: so that everybody
/// is back at the end, and is owed everything.
fn whole_turns(moves: f64, movers: u32) -> u64 {
    let turn = 3 * u64::from(movers.max(1));
    (moves as u64 / turn).max(1) * turn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_left_outside_at_the_end() {
        assert_eq!(whole_turns(100.0, 10), 90);
        assert_eq!(whole_turns(5.0, 10), 30);
        assert_eq!(whole_turns(5.0, 0), 3);
    }
}
